import { UserError } from '../errors.ts';
import { TenantPolicies_Pii } from '../gen/memory/v1/tenant.ts';
import { adk } from '../importers/adk.ts';
import { importConversations } from '../importers/importer.ts';
import { langgraph } from '../importers/langgraph.ts';
import { mastra } from '../importers/mastra.ts';
import { createReport } from '../importers/report.ts';
import type { Source } from '../importers/source.ts';
import { withClient } from '../preflight.ts';
import { tokenCounter } from '../tokens/counter.ts';
import { checked, direct } from './direct.ts';
import { progress } from './progress.ts';
import { visible } from './telling.ts';
import { existing } from './tenants.ts';

const SOURCES = { adk, langgraph, mastra } satisfies Record<string, Source>;

export interface FrameworkOptions {
  from?: keyof typeof SOURCES;
  sourceUrl?: string;
  tenant?: string;
  env?: string;
  user?: string;
  addMembers: boolean;
  dryRun: boolean;
}

const UNDEFINED_TABLE = '42P01';

/** Reads the conversations of a framework, stores them, and reports. */
export async function runFrameworkImport(file: string | undefined, options: FrameworkOptions): Promise<void> {
  const { from = 'mastra', sourceUrl, tenant, env, user, addMembers, dryRun } = options;
  if (file) throw new UserError('--from reads no file');
  if (!sourceUrl || !tenant || !env) throw new UserError('--from needs --source-url, --tenant and --env');
  if (!/^postgres(ql)?:\/\//.test(sourceUrl)) {
    throw new UserError('--source-url is not a URL such as postgres://user:password@host:5432/database');
  }
  const report = createReport();
  const shown = progress(() => report.lines().slice(0, 2).join(', '));
  try {
    await direct(async ({ database, limits }) => {
      checked((check) => {
        check.slug('env', env);
        if (user !== undefined) check.id('user', user);
      });
      const { policies } = await existing({ database, limits }, tenant, env);
      const place = {
        database,
        tenant,
        env,
        pii: policies.pii ?? TenantPolicies_Pii.REJECT,
        surfaceId: from,
        addMembers,
        dryRun,
      };
      await withClient(sourceUrl, async (client) => {
        const found = SOURCES[from](client, user);
        await importConversations(place, found, report, shown.tick);
      });
    });
    if (report.lines().length === 0) console.log('nothing to import');
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (code === UNDEFINED_TABLE) throw new UserError(`these are not the tables of ${from}: ${message}`);
    throw error;
  } finally {
    shown.end();
    await tokenCounter.stop();
    // What was done stands, also where it ended before its end.
    const lines = [dryRun ? 'It would import' : 'Imported', ...report.lines()];
    if (lines.length > 1) console.log(lines.map(visible).join('\n  '));
  }
}
