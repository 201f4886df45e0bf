import { domainToASCII } from 'node:url';
import { parsePhoneNumberFromString } from 'libphonenumber-js/max';

// ISO 3166-1 alpha-2, officially assigned.
export const countries: readonly string[] =
  `AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG
  CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL
  GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA
  LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP
  NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV
  SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW`.split(
    /\s+/,
  );
const COUNTRIES = new Set(countries);

export const countryOf = (text: string): string | undefined =>
  COUNTRIES.has(text.toUpperCase()) ? text.toUpperCase() : undefined;

/** A number with its country code in E.164, if there can be such a number: also one that is set aside for fiction. */
export function e164(text: string): string | undefined {
  const number = parsePhoneNumberFromString(text.trim(), { extract: false });
  return number?.isPossible() ? number.number : undefined;
}

export const isEmail = (text: string): boolean => /^[^\s@]+@[^\s@]+$/.test(text);

/**
 * An e-mail address as it is compared: case does not matter, and a domain is the same in letters and in Punycode. Dots and
 * tags of the part before the @ do, as only some providers ignore them. '' if there is none.
 */
export function emailKey(email: string): string {
  const [local = '', domain = ''] = email.trim().normalize('NFC').split('@');
  return domain && `${local.toLowerCase()}@${domainToASCII(domain) || domain.toLowerCase()}`;
}
