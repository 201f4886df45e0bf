import { readFile } from 'node:fs/promises';
import { type Chaining, ForeignNumbers, UnknownHead } from '../audit/blocks.ts';
import type { Anchor } from '../audit/chain-check.ts';
import { checkFilter } from '../audit/filter.ts';
import { listAuditEvents } from '../audit/repository.ts';
import { sealAll } from '../audit/seal.ts';
import { verifyPlace } from '../audit/verify.ts';
import { audited, commandStamp } from '../db/change.ts';
import { change } from '../db/statement.ts';
import { type TenantScope, transaction, transactionOnce } from '../db/transaction.ts';
import { UserError } from '../errors.ts';
import { AuditEvent, AuditEvent_Outcome } from '../gen/memory/v1/audit_service.ts';
import { everyPlace } from '../tenants/places.ts';
import { store } from '../transfer/file.ts';
import { checked, direct, keyringIn } from './direct.ts';
import { progress, thousands } from './progress.ts';
import { protoJson, visible } from './telling.ts';
import { existing } from './tenants.ts';

export interface AuditExportOptions {
  tenant: string;
  env: string;
  start?: Date;
  end?: Date;
  user: string;
  actor: string;
  action: string;
  session: string;
  resource: string;
  trace: string;
  request: string;
  outcome?: 'done' | 'denied';
}

export interface SealOptions {
  keyFile: string;
}

export interface VerifyOptions extends SealOptions {
  tenant?: string;
  env?: string;
  anchors?: string;
}

const PAGE = 500;
const OUTCOMES = {
  any: AuditEvent_Outcome.UNSPECIFIED,
  done: AuditEvent_Outcome.DONE,
  denied: AuditEvent_Outcome.DENIED,
};

const EXPORTED = change(`
  with read as (select 1), ${audited('audit.export', 'read', { resource: `'tenants/' || $1` })}
  select 1 from read`);

const timestampOf = (time: Date | undefined) =>
  time && { seconds: Math.floor(time.getTime() / 1000), nanos: (time.getTime() % 1000) * 1e6 };

/** All that match, of one instant, page by page. */
export async function exportAudit(file: string, options: AuditExportOptions): Promise<void> {
  const { tenant, env, start, end, user, session, trace, request, outcome, ...same } = options;
  const { actor, action, resource } = same;
  const filter = {
    userId: user,
    actor,
    action,
    sessionId: session.toLowerCase(),
    resource,
    outcome: OUTCOMES[outcome ?? 'any'],
    traceId: trace,
    callRequestId: request.toLowerCase(),
  };
  const times = { startTime: timestampOf(start), endTime: timestampOf(end) };
  let count = 0;
  const shown = progress(() => `${thousands(count)} events`);
  await direct(async (context) => {
    checked((check) => checkFilter(check, filter));
    await existing(context, tenant, env);
    const { database, limits } = context;
    const scope = { tenant, env, user: '' };
    await transaction(database, scope, commandStamp('AuditExport'), limits, { repeatable: false }, (tx) =>
      tx.final(EXPORTED),
    );
    await transactionOnce(database, scope, undefined, { ...limits, snapshot: true }, async (tx) => {
      async function* lines() {
        for (let after: string | undefined; ; ) {
          const page = await listAuditEvents(tx, filter, times, 'all', 'asc', after, PAGE);
          if (page.length > 0) yield page.map(lineOf).join('');
          count += page.length;
          shown.tick();
          if (page.length < PAGE) return;
          after = page.at(-1)!.id;
        }
      }
      await store(file, lines());
    });
  }).finally(shown.end);
  console.error(`exported ${thousands(count)} events${file === '-' ? '' : `, to ${file}`}`);
}

/** As `grpcurl` and `buf curl` write an event. */
const lineOf = (event: AuditEvent): string =>
  `${visible(JSON.stringify(protoJson('AuditEvent', AuditEvent.encode(event).finish())))}\n`;

/** Without an env it is the tenant's own trail. */
const nameOf = ({ tenant, env }: TenantScope): string => (env ? `${tenant}/${env}` : tenant);

function placeOf(name: string): TenantScope {
  const [tenant, env = ''] = name.split('/') as [string, string?];
  return { tenant, env };
}

/** Verifies chains one after the other, and prints a line for each finding, or else the chain's last block. */
export async function verifyAudit({ tenant, env, anchors: file, keyFile }: VerifyOptions): Promise<void> {
  if (env !== undefined && tenant === undefined) throw new UserError('--env needs --tenant');
  const keyring = await keyringIn(keyFile);
  const anchors = file === undefined ? new Map<string, Anchor>() : parseAnchors(file, await readText(file));
  const sum = { chains: 0, events: 0, waiting: 0, findings: 0 };
  const shown = progress(() => `${thousands(sum.chains)} chains, ${thousands(sum.events)} events`);
  await direct(async (context) => {
    const chaining: Chaining = { database: context.database, keyring };
    const verify = async (scope: TenantScope) => {
      const name = nameOf(scope);
      let findings = 0;
      const found = await verifyPlace(chaining, scope, context.limits, anchors.get(name), (finding) => {
        findings++;
        const { blockNo, eventId, what } = finding;
        console.log([name, `block ${blockNo}`, ...(eventId ? [`event ${eventId}`] : []), what].join('\t'));
      });
      anchors.delete(name);
      if (findings === 0 && found.head.blockNo > 0)
        console.log([name, `${found.head.blockNo}:${found.head.hash}`].join('\t'));
      if (found.head.blockNo > 0) sum.chains++;
      sum.events += found.events;
      sum.waiting += found.waiting;
      sum.findings += findings;
      shown.tick();
    };
    if (tenant === undefined) {
      let before = '';
      await everyPlace(context.database, undefined, async (scope) => {
        if (scope.tenant !== before) await verify({ tenant: scope.tenant, env: '' });
        before = scope.tenant;
        await verify(scope);
        return false;
      });
    } else {
      const { envs } = await existing(context, tenant, env);
      for (const one of env === undefined ? ['', ...envs] : [env]) await verify({ tenant, env: one });
    }
    // Of everything: also a chain whose tenant is gone from the directory.
    if (tenant === undefined) {
      for (const name of [...anchors.keys()]) await verify(placeOf(name));
    }
  }).finally(shown.end);
  const { chains, events, waiting, findings } = sum;
  console.error(
    `verified ${thousands(events)} sealed events in ${thousands(chains)} chains, ${thousands(waiting)} are not sealed yet: ${findings === 0 ? 'all as they were sealed' : `${thousands(findings)} findings`}`,
  );
  if (findings > 0) process.exitCode = 1;
}

/** Seals what is committed in all places, and tells how many events of each. */
export async function seal({ keyFile }: SealOptions): Promise<void> {
  const keyring = await keyringIn(keyFile);
  const counts = await direct(({ database }) => sealAll({ database, keyring })).catch((error) => {
    throw error instanceof ForeignNumbers || error instanceof UnknownHead ? new UserError(error.message) : error;
  });
  for (const [place, events] of [...counts].sort()) console.log(`${place}\t${events}`);
  if (counts.size === 0) console.log('nothing to seal');
}

const readText = (file: string): Promise<string> =>
  readFile(file, 'utf8').catch((error) => {
    throw new UserError(`${file} cannot be read: ${error.code}`);
  });

const ANCHOR = /^([a-z0-9-]{1,63}(?:\/[a-z0-9-]{1,63})?)\t([1-9]\d{0,14}):([0-9a-f]{64})$/;

function parseAnchors(file: string, text: string): Map<string, Anchor> {
  const anchors = new Map<string, Anchor>();
  for (const [i, line] of text.trimEnd().split('\n').entries()) {
    const [, name, blockNo, hash] = ANCHOR.exec(line) ?? [];
    if (!name || !blockNo || !hash)
      throw new UserError(`line ${i + 1} of ${file} is not one that verify prints of a sound chain`);
    anchors.set(name, { blockNo: Number(blockNo), hash });
  }
  return anchors;
}
