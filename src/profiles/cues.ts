// How people say that something is theirs, in the languages that are read: English, German, French, Spanish, Italian,
// Portuguese, Dutch, Swedish, Polish and, for names, Russian. Each cue stands before the value.

const any = (...cues: string[]) => new RegExp(`(?<![\\p{L}\\p{N}])(?:${cues.join('|')})`, 'giu');

export const NAME_CUE = any(
  `my (?:full )?name(?: is|['’]s)`,
  `mein (?:voller )?name (?:ist|lautet)`,
  `ich hei(?:ß|ss)e`,
  `je m['’]appelle`,
  `je me nomme`,
  `mon nom est`,
  `me llamo`,
  `mi nombre es`,
  `mi chiamo`,
  `il mio nome è`,
  `(?:o )?meu nome é`,
  `(?:eu )?me chamo`,
  `chamo-me`,
  `ik heet`,
  `mijn naam is`,
  `jag heter`,
  `mitt namn är`,
  `nazywam się`,
  `mam na imię`,
  `меня зовут`,
);

const GREETING = `(?:hi|hello|hey|dear all|good (?:morning|afternoon|evening|day)|hallo|guten (?:tag|morgen|abend)|servus|grüezi|bonjour|salut|bonsoir|hola|buen[oa]s (?:días|tardes|noches)|ciao|salve|buongiorno|buonasera|olá|oi|bom dia|boa tarde|hoi|goedemorgen|goedemiddag|hej|god morgon|cześć|dzień dobry|привет|здравствуйте|добрый день)`;

/** What may stand right before a cue, where it begins no sentence or clause: whatever else does speaks of the words, not with them. */
export const LEAD = new RegExp(
  `(?:^|[,;!.)–—-]\\s*|(?<![\\p{L}\\p{N}])(?:and|or|but|und|oder|aber|et|ou|mais|y|pero|e|ed|ma|mas|en|of|maar|och|eller|men|i|oraz|ale|и|а)\\s+)(?:(?:${GREETING}|there|all|everyone|yes|yeah|sure|ok|okay|well|so|also|actually|btw|by the way|please|just|simply|best|you (?:can|may|could)(?: always| also| best)?|feel free to|ja|klar|also|übrigens|bitte|sie können|du kannst|oui|alors|vous pouvez|tu peux|sí|pues|puedes?|sì|puoi|può|sim|pode|podes|tak|да)[\\s,!.]+)*$`,
  'iu',
);

const MAIL = `(?:e-?mail|mail|email|correo|courriel)(?:[- ]?(?:address|addr|adresse|adres|adress|electrónico))?`;
export const EMAIL_CUE = any(
  `my (?:new |private |personal |work )?${MAIL}(?:['’]s)?`,
  `meine (?:neue |private )?${MAIL}`,
  `(?:mon|mon adresse) ${MAIL}`,
  `mi ${MAIL}`,
  `(?:il|la) mi[oa] (?:indirizzo )?${MAIL}`,
  `(?:o )?meu ${MAIL}`,
  `mijn ${MAIL}`,
  `min ${MAIL}`,
  `mój ${MAIL}(?: to)?`,
  `(?:reach|contact|write|e-?mail|mail)(?: to)? me`,
  `ich bin (?:auch )?unter`,
  `erreich(?:en|st) (?:sie |du )?mich (?:auch )?(?:unter|per mail unter)`,
  `me contacter (?:à|sur|par mail à)`,
  `m['’]écrire à`,
  `escribirme a`,
  `contactarme en`,
  `scrivermi a`,
  `contattarmi a`,
);

const PHONE = `(?:(?:tele)?phone(?: number)?|cell(?:phone)?(?: number)?|mobile(?: number)?|number|whatsapp)`;
/** With the countries where a number without a country code may be. */
export const PHONE_CUES: [cue: RegExp, countries: string[]][] = [
  [any(`my (?:new )?${PHONE}`, `(?:call|text|ring|phone|reach|whatsapp) me`), ['US', 'GB', 'AU']],
  [
    any(
      `meine (?:neue )?(?:(?:handy|telefon|mobil|rück?ruf)?nummer|mobilnummer)`,
      `(?:erreichen sie|sie erreichen|erreichst du|du erreichst) mich (?:auch )?(?:unter|telefonisch unter)`,
      `ich bin (?:auch )?unter`,
    ),
    ['DE'],
  ],
  [any(`mon (?:numéro(?: de téléphone)?|téléphone|portable|mobile)`), ['FR']],
  [any(`mi (?:número(?: de teléfono)?|teléfono|móvil|celular)`), ['ES']],
  [any(`il mio (?:numero(?: di telefono)?|telefono|cellulare)`), ['IT']],
  [any(`(?:o )?meu (?:número(?: de telefone)?|telefone|celular)`), ['BR']],
  [any(`mijn (?:telefoonnummer|nummer|mobiel)`), ['NL']],
  [any(`mitt (?:telefonnummer|nummer|mobilnummer)`), ['SE']],
  [any(`mój (?:numer(?: telefonu)?|telefon)(?: to)?`), ['PL']],
];

export const ADDRESS_CUE = any(
  `i live (?:at|in)`,
  `my (?:new |home |shipping |postal |billing |delivery )?address(?: is(?: now)?| ?:)`,
  `(?:ship|send|deliver) (?:it |them |this )?to me at`,
  `(?:ich wohne|wir wohnen)(?: jetzt)?(?: in der| in dem| im| in| am| an der)?`,
  `meine (?:neue )?(?:adresse|anschrift)(?: ist| lautet| ?:)`,
  `j['’]habite(?: au| à| dans la)?`,
  `mon adresse(?: est)?(?: le| ?:)?`,
  `vivo en(?: la)?`,
  `mi dirección(?: es| ?:)`,
  `abito (?:in|a)`,
  `il mio indirizzo(?: è| ?:)`,
  `moro (?:na|no|em)`,
  `(?:o )?meu endereço(?: é| ?:)`,
  `ik woon (?:op de|op het|aan de|in de|op|in)`,
  `mijn adres(?: is| ?:)`,
  `jag bor (?:på|i)`,
);

/** What may stand between a cue and its value. Never "to": who sends his mail to an address has another one. */
export const GAP =
  /^(?:[\s:=,<(-]|(?<![\p{L}\p{N}])(?:is|it['’]?s|['’]s|s|now|currently|please|at|on|via|under|by|back|directly|anytime|here|the|this|number|address|e-?mail|mail|phone|mobile|ist|lautet|unter|auf|per|jetzt|gerne|die|der|das|est|le|la|au|à|sur|par|es|el|en|al|è|il|o|é|no|pelo|är|på|op|jest)(?![\p{L}\p{N}]))*$/iu;

/** What may stand around a value that is all of an answer. */
export const FILLER =
  /(?<![\p{L}\p{N}])(?:yes|yeah|sure|ok(?:ay)?|of course|please|here|it(?: is|['’]s)|thanks|e-?mail|mail|phone|tel|ja|klar|gerne|bitte|sie ist|es ist|oui|bien sûr|c['’]est|voici|sí|claro|es|sì|certo|è|sim|é|tak)(?![\p{L}\p{N}])|[\s:,.!()-]/giu;

/** Who else a sentence may speak of. */
export const OTHERS =
  /(?<![\p{L}\p{N}])(?:his|hers?|their|theirs|he|she|they|him|them|someone|somebody|our|boss|manager|colleagues?|coworker|wife|husband|spouse|partner|brother|sister|son|daughter|child|kids?|mother|father|mom|mum|dad|parents?|grand\w+|assistant|secretary|uncle|aunt|cousin|neighbou?r|friend|team|office|company|support|hotline|helpdesk|customer|client|doctor|landlord|shop|store|sein\w*|ihre?[rmn]?|chef\w*|kolleg\w*|frau|mann|bruder|schwester|sohn|tochter|mutter|vater|eltern|freund\w*|nachbar\w*|büro|firma|unser\w*|kund\w*|son|sa|leur|collègue|patron\w*|femme|mari|frère|sœur|fils|fille|mère|père|parents|ami\w*|bureau|notre|su|sus|jef[ea]|compañer[oa]|esposa|marido|herman[oa]|hij[oa]|madre|padre|padres|amig[oa]|oficina|nuestr[oa]|suo|sua|capo|collega|moglie|marito|fratello|sorella|figli[oa]|ufficio|nostr[oa]|seu|chefe|colega|mulher|irm[ãa]o?|filh[oa]|mãe|pai|escritório|zijn|haar|hun|baas|vrouw|broer|zus|zoon|dochter|moeder|vader|ouders|kantoor)(?![\p{L}\p{N}])/iu;

/** What is not said, but supposed, cited or made up. */
export const SUPPOSED =
  /(?<![\p{L}\p{N}])(?:for example|for instance|e\.g|such as|looks? like|something like|if|suppose|supposing|imagine|pretend|assume|let['’]?s say|says?|said|wrote|begins|starts with|sentence|poem|story|hero|placeholder|format|translate|rewrite|replace|wenn|falls|angenommen|stell dir vor|tu so|zum beispiel|z\. ?b|sagt\w*|schrieb|par exemple|si|imagine[zr]?|suppos\w+|dit|écrit|por ejemplo|imagina|supon\w*|dijo|dice|ad esempio|immagina|por exemplo|bijvoorbeeld|no longer|used to|old|former|wrong)(?![\p{L}\p{N}])/iu;

/** A message that gives a task, about a text that is not the person's own words. */
export const TASK =
  /^[\s>]*(?:(?:please|can you|could you|would you|bitte|kannst du|können sie|peux-tu|pouvez-vous|puedes|por favor)[, ]+)*(?:translate|summari[sz]e|rewrite|rephrase|correct|proofread|parse|extract|explain|classify|redact|anonymi[sz]e|act (?:as|like)|role-?play|you are|(?:check|review|read|fix|improve|polish|shorten|edit|format|look (?:over|at|through)) (?:this|that|these|the|following|below)|write an?|draft|compose|complete|continue|pretend|imagine|suppose|übersetz\w*|fasse? \w+ zusammen|schreib\w* (?:einen?|mir)|korrigier\w*|tradui\w*|résum\w*|corrige\w*|écri\w+ une?|traduc\w*|resum\w*|escrib\w+ una?|traduci|riassumi|scrivi una?)(?![\p{L}\p{N}])/iu;

/** Where somebody else's mail begins. */
export const CITED =
  /^(?:-{2,} ?(?:original message|forwarded message|ursprüngliche nachricht|weitergeleitete nachricht|message (?:d['’]origine|transféré)|mensaje (?:original|reenviado)).*|(?:from|von|de|da|van|od): .*|(?:on|am|le|el|il|op|em) .{4,80}(?:wrote|schrieb.*|a écrit|escribió|ha scritto|schreef|escreveu) ?:?.*)$/imu;

/** Whoever has one of these in the name is no person. */
export const NO_PERSON =
  /(?<![\p{L}])(?:support|team|service|services|bank|office|company|customer|helpdesk|inc|ltd|llc|gmbh|ag|corp|corporation|university|hospital|john doe|jane (?:doe|roe)|max mustermann|erika mustermann|engineer|developer|programmer|architect|designer|manager|director|president|officer|chief|head|lead|leader|owner|analyst|scientist|researcher|consultant|specialist|administrator|admin|assistant|student|teacher|professor|nurse|founder|cofounder|ceo|cto|cfo|intern|employee|tester|user|member|guest|subscriber|beginner|expert|newbie|senior|junior|vice|backend|frontend|fullstack|ingenieur|entwickler(?:in)?|ingénieur|développeur|ingenier[oa]|desarrollador[a]?|sviluppatore|desenvolvedor)(?![\p{L}])/iu;

/** Words with a capital that follow "I'm" and "my name is" without being names. */
export const NO_NAME = new Set(
  `really very so not just kind sorry happy sad sure interested looking trying having getting going here there new also still
  already afraid glad currently now back done fine good great ok okay on in at the a an missing misspelled misspelt spelled wrong
  curious confused stuck busy tired worried excited ready unable wondering calling writing using working running planning living
  based married pregnant vegan vegetarian student teacher important unknown confidential private common hard easy up lost legend batman sir madam mr mrs ms dr you your
  american british english german french spanish italian portuguese dutch belgian swiss austrian swedish norwegian danish finnish
  polish czech slovak russian ukrainian turkish greek irish scottish welsh canadian mexican brazilian argentinian indian pakistani
  chinese japanese korean vietnamese thai australian african european asian muslim christian jewish hindu buddhist
  monday tuesday wednesday thursday friday saturday sunday tomorrow today later when maybe again
  deaf blind autistic dyslexic disabled gay straight trans queer adhd hr it qa ok crazy nuts cool asap immediately urgently directly quickly
  soon anytime whenever tonight morning evening pregnant sick ill healthy single divorced retired unemployed remote offline online available
  free excited thrilled delighted pleased proud grateful thankful annoyed angry upset furious disappointed frustrated overwhelmed exhausted
  hungry thirsty bored lucky unhappy unsure certain positive aware pretty quite rather totally completely absolutely extremely super
  right correct allowed required supposed able unable willing anoche hase je u jullie niet nicht pas no never nobody everybody
  sie ihn euch dich alle bien aussi comme la lo el al`.split(/\s+/),
);
