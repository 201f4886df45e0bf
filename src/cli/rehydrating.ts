import { databaseUrlOf } from '../config.ts';
import { withClient } from '../preflight.ts';
import { openStore } from '../snapshots/open.ts';
import { rehydrate } from '../transfer/rehydrate.ts';
import { checked, direct } from './direct.ts';
import { progress } from './progress.ts';
import { existing } from './tenants.ts';

export interface RehydrateOptions {
  tenant: string;
  env: string;
  project: string;
  from: URL;
}

export async function runRehydrate({ tenant, env, project, from }: RehydrateOptions): Promise<void> {
  let what = '';
  const shown = progress(() => what);
  const { restored, there, missing, strangers } = await direct(async (context) => {
    checked((check) => {
      check.slug('env', env);
      check.id('project', project);
    });
    await existing(context, tenant, env);
    const store = await openStore(from);
    const place = { database: context.database, tenant, env, projectId: project };
    return withClient(databaseUrlOf(process.env), (client) =>
      rehydrate(place, client, store, (file) => {
        what = file;
        shown.tick();
      }),
    );
  }).finally(shown.end);
  for (const name of strangers) console.error(`memoryd: left out ${name}, which is no snapshot`);
  for (const version of missing) console.error(`memoryd: the store has no snapshot of the ${version}`);
  console.error(`restored ${restored} snapshots; ${there} were there already`);
}
