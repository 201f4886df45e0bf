import { Command, InvalidArgumentError } from 'commander';
import { QUOTAS, type Quota } from '../rpc/quotas.ts';
import { AGING, type Aging } from '../tenants/aging.ts';
import type { Direct } from './direct.ts';

/** A tenant, with its envs and members. Each change leaves its audit event, with the actor `cli`. */
export function tenantCommand(): Command {
  const command = new Command('tenant').description('Manages tenants, their envs and their members, in the database.');
  command
    .command('create')
    .description('Creates a tenant.')
    .argument('<tenant>', 'Its id: lower-case letters, digits and hyphens.')
    .argument('<envs...>', 'Its envs, at least one.')
    .option('--name <text>', 'A name for people.', '')
    .action((tenant: string, envs: string[], { name }: { name: string }) =>
      run((tenants, context) => tenants.create(context, tenant, envs, name)),
    );
  command
    .command('env')
    .description('Manages envs.')
    .command('add')
    .description('Adds an env to a tenant.')
    .argument('<tenant>')
    .argument('<env>')
    .action((tenant: string, env: string) => run((tenants, context) => tenants.addEnv(context, tenant, env)));
  const member = command.command('member').description('Manages members.');
  member
    .command('add')
    .description("Makes a user a member of a tenant's env, or changes the role.")
    .argument('<tenant>')
    .argument('<env>')
    .argument('<user>')
    .option('--admin', "Also manages members and reads the tenant's audit events.", false)
    .action((tenant: string, env: string, user: string, { admin }: { admin: boolean }) =>
      run((tenants, context) => tenants.addMember(context, { tenant, env, user }, admin)),
    );
  member
    .command('remove')
    .description('Removes a member. What the user stored stays.')
    .argument('<tenant>')
    .argument('<env>')
    .argument('<user>')
    .action((tenant: string, env: string, user: string) =>
      run((tenants, context) => tenants.removeMember(context, { tenant, env, user })),
    );
  const retention = command
    .command('retention')
    .description(
      'Tells for how many days a tenant keeps what, after setting the kinds that are given: 0 keeps for ever.',
    )
    .argument('<tenant>')
    .action((tenant: string, days: Partial<Record<Aging, number>>) =>
      run((tenants, context) => tenants.retention(context, tenant, days)),
    );
  for (const kind of AGING) retention.option(`--${kind} <days>`, `Days after which ${AGED[kind]} are removed.`, whole);
  const quotas = command
    .command('quotas')
    .description('Sets quotas of a tenant, and tells those that it has.')
    .argument('<tenant>');
  for (const { name, bounds } of Object.values(QUOTAS)) {
    quotas.option(`--${name.replaceAll('_', '-')} <number>`, `At most so many ${bounds}. 0: any number.`, whole);
  }
  quotas.action((tenant: string, given: Partial<Record<Quota, number>>) =>
    run((tenants, context) => tenants.setQuotas(context, tenant, given)),
  );
  command
    .command('list')
    .description('Lists the tenants, or the members of one.')
    .argument('[tenant]')
    .action((tenant?: string) => run((tenants, context) => tenants.list(context, tenant)));
  return command;
}

const AGED: Record<Aging, string> = {
  messages: 'messages',
  turns: 'turns, with their results, prompts and calls of tools,',
  checkpoints: "checkpoints of sessions' states",
  audit: 'audit events',
  usage: 'calls of models and their sums',
};

function whole(text: string): number {
  if (!/^\d{1,16}$/.test(text)) throw new InvalidArgumentError('not a whole number');
  return Number(text);
}

type Tenants = typeof import('./tenants.ts');

async function run(work: (tenants: Tenants, context: Direct) => Promise<string[]>): Promise<void> {
  const [{ direct }, tenants] = await Promise.all([import('./direct.ts'), import('./tenants.ts')]);
  const lines = await direct((context) => work(tenants, context));
  for (const line of lines) console.log(line);
}
