import { stat } from 'node:fs/promises';
import { databaseUrlOf } from '../config.ts';
import { audited, commandStamp } from '../db/change.ts';
import { change } from '../db/statement.ts';
import { transaction } from '../db/transaction.ts';
import { UserError } from '../errors.ts';
import { withClient } from '../preflight.ts';
import { exportTo } from '../transfer/export.ts';
import { importFrom } from '../transfer/import.ts';
import { ACTIONS } from '../transfer/rules.ts';
import { checked, type Direct, direct } from './direct.ts';
import { megabytes, progress, thousands } from './progress.ts';
import { existing } from './tenants.ts';

export interface ExportOptions {
  tenant: string;
  env?: string;
  project?: string;
}

export interface ImportOptions {
  tenant?: string;
  env?: string;
  dryRun: boolean;
}

const AUDIT = change(`
  with read as (select 1), ${audited(ACTIONS.export, 'read', {
    resource: `case when $11::text = '' then 'tenants/' || $1 else 'projects/' || $11 end`,
  })}
  select 1 from read`);

/** The event is there before anything is read, however the export ends. */
async function leaveEvents({ database, limits }: Direct, tenant: string, envs: string[], project: string) {
  for (const env of envs) {
    await transaction(
      database,
      { tenant, env, user: '' },
      commandStamp('Export'),
      limits,
      { repeatable: false },
      (tx) => tx.final(AUDIT, [project]),
    );
  }
}

export async function runExport(file: string, { tenant, env, project }: ExportOptions): Promise<void> {
  let [rows, bytes, what] = [0, 0, ''];
  const shown = progress(() => `${thousands(rows)} rows, ${megabytes(bytes)}: ${what}`);
  const footer = await direct(async (context) => {
    checked((check) => {
      if (env !== undefined) check.slug('env', env);
      if (project !== undefined) check.id('project', project);
      check.that(project === undefined || env !== undefined, 'project', 'needs --env');
    });
    const { envs } = await existing(context, tenant, env);
    const wanted = env === undefined ? envs : [env];
    await leaveEvents(context, tenant, wanted, project ?? '');
    return withClient(databaseUrlOf(process.env), (client) =>
      exportTo(file, client, { tenant, envs: wanted, whole: env === undefined, project: project ?? '' }, (batch) => {
        rows += batch.lines.length;
        bytes += batch.lines.reduce((sum, line) => sum + line.length + 1, 0);
        what = `${batch.env} ${batch.table}`;
        shown.tick();
      }),
    );
  }).finally(shown.end);
  console.error(`exported ${thousands(footer.rows)} rows, ${megabytes(bytes)}${file === '-' ? '' : `, to ${file}`}`);
}

export async function runImport(file: string | undefined, { tenant, env, dryRun }: ImportOptions): Promise<void> {
  if (!file) throw new UserError('import needs a file, or --from');
  const size = file === '-' ? 0 : await sizeOf(file);
  let state = '';
  const shown = progress(() => state);
  const counts = { checked: 0, stored: 0 };
  const result = await direct(({ database }) => {
    checked((check) => {
      if (tenant !== undefined) check.slug('tenant', tenant);
      if (env !== undefined) check.slug('env', env);
    });
    return withClient(databaseUrlOf(process.env), (client) =>
      importFrom({ file, tenant, env, dryRun }, client, database, (phase, rows, at) => {
        counts[phase] += rows;
        const share = size > 0 ? `, ${Math.floor((100 * at) / size)} %` : '';
        state = `${phase} ${thousands(counts[phase])} rows${share}`;
        shown.tick();
      }),
    );
  }).finally(shown.end);
  const left = result.rows - result.stored;
  const told = dryRun
    ? [`${thousands(result.rows)} rows are whole, and nothing else is there`]
    : [`stored ${thousands(result.stored)} rows`, `${thousands(left)} were there already`];
  if (result.there) told.push('the tenant was there, and keeps its name, policies and members');
  console.error(`tenant ${result.tenant}: ${told.join('; ')}`);
}

async function sizeOf(file: string): Promise<number> {
  const found = await stat(file).catch((error) => {
    throw new UserError(`${file} cannot be read: ${error.code}`);
  });
  return found.size;
}
