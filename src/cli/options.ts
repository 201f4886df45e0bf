import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  type Config,
  databaseUrlOf,
  devStandards,
  flagOf,
  makeConfig,
  SETTINGS,
  type Setting,
  type SettingName,
} from '../config.ts';
import { UserError } from '../errors.ts';

/** Adds a flag for each setting, `without` those that the command decides itself. What is not given is left to `makeConfig`. */
export function addSettings(command: Command, dev: boolean, without: SettingName[] = []): Command {
  for (const [name, { value, parse, standard, meaning, env }] of Object.entries(SETTINGS) as [
    SettingName,
    Setting<unknown>,
  ][]) {
    if (without.includes(name)) continue;
    const text = (dev ? devStandards()[name] : undefined) ?? standard;
    const told = `${meaning.replaceAll('`', '')}${text === undefined ? '' : ` (default: ${text})`}`;
    const option = new Option(`${flagOf(name)} <${value}>`, told).argParser(orRefuse(parse));
    command.addOption(env ? option.env(env) : option);
  }
  return command;
}

/** Makes a fault of a value one of the command line. */
export const orRefuse =
  <T>(parse: (text: string) => T) =>
  (text: string): T => {
    try {
      return parse(text);
    } catch (error) {
      if (error instanceof UserError) throw new InvalidArgumentError(error.message);
      throw error;
    }
  };

/** What the flags and the environment say together. */
export const configOf = (options: Parameters<typeof makeConfig>[1]): Config =>
  makeConfig(databaseUrlOf(process.env), options);

/** The flag of the commands that talk to the database and nothing else. */
export const directOption = () =>
  new Option('--direct-database-url <url>', SETTINGS.directDatabaseUrl.meaning)
    .default(undefined, 'DATABASE_URL')
    .env(SETTINGS.directDatabaseUrl.env!);

/** The flag of the commands that sign, or look at what was signed. */
export const keyFileOption = (why = '') =>
  new Option('--key-file <file>', `The service's own keys: see memoryd keys. ${why}`.trim());
