import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import { RequestIdReused } from '../src/db/change.ts';
import { CommitUnknown, DatabaseAway, Interrupted, PoolExhausted } from '../src/db/failure.ts';
import { BadPageToken } from '../src/db/page.ts';
import { BadRequest, ErrorInfo, QuotaFailure, RetryInfo } from '../src/gen/google/rpc/error_details.ts';
import { Status } from '../src/gen/google/rpc/status.ts';
import {
  denied,
  type ErrorDetails,
  etagMismatch,
  exhausted,
  invalid,
  notFound,
  RpcError,
  toRpcError,
  toServiceError,
  unavailable,
} from '../src/rpc/errors.ts';
import { describe as describeError } from '../src/rpc/observe.ts';

const DETAILS_LIMIT = 4096;
const { INVALID_ARGUMENT, INTERNAL, UNAVAILABLE, RESOURCE_EXHAUSTED, ABORTED, DEADLINE_EXCEEDED } = status;

/** What a client decodes, with what is demanded of every error. */
function decoded(error: RpcError) {
  const sent = toServiceError(error);
  const [bytes] = sent.metadata!.get('grpc-status-details-bin') as Buffer[];
  expect(bytes!.length, 'the details').to.be.at.most(DETAILS_LIMIT);
  // As grpc-js sends it; clients commonly take 8 KiB of headers, in which base64 counts.
  const onTheWire = encodeURI(sent.details).length + Math.ceil(bytes!.length / 3) * 4;
  expect(onTheWire, 'message and details together').to.be.at.most(8000);
  expect(sent.details.isWellFormed()).to.equal(true);
  expect(sent.details).to.not.match(/[\0-\x1f\x7f]/);
  const [pushback = '-1'] = sent.metadata!.get('grpc-retry-pushback-ms');
  expect(pushback, 'of which Go takes only whole numbers').to.match(/^(-1|\d+)$/);
  const result = Status.decode(bytes!);
  expect(result.code).to.equal(sent.code).and.to.equal(error.code);
  expect(result.message).to.equal(sent.details);
  const find = (type: string) =>
    result.details.find((detail) => detail.typeUrl === `type.googleapis.com/google.rpc.${type}`)?.value;
  const [info, bad, retry, quota] = ['ErrorInfo', 'BadRequest', 'RetryInfo', 'QuotaFailure'].map(find);
  const errorInfo = ErrorInfo.decode(info!);
  expect(errorInfo.domain).to.equal('memoryd');
  return {
    message: result.message,
    reason: errorInfo.reason,
    metadata: Object.fromEntries(errorInfo.metadata),
    violations: bad ? BadRequest.decode(bad).fieldViolations : [],
    retry: retry && RetryInfo.decode(retry).retryDelay,
    quota: quota && QuotaFailure.decode(quota).violations,
  };
}

const many = (count: number, field: string, description: string) =>
  Array.from({ length: count }, (_, i) => ({ field: `${i}.${field}`, description }));

describe('errors on the wire', () => {
  it('name every violation, as long as they fit', () => {
    const violations = many(20, 'session.title', 'longer than 500 characters');
    const { violations: told, reason, message } = decoded(invalid(violations));
    expect(told.map(({ field, description }) => ({ field, description }))).to.deep.equal(violations);
    expect(reason).to.equal('INVALID_REQUEST');
    expect(message).to.contain('0.session.title: longer than 500 characters; 1.session.title');
  });

  const HUGE: Record<string, string> = {
    ascii: 'x'.repeat(100_000),
    emoji: '👩‍👩‍👧‍👦'.repeat(20_000),
    'three bytes each': '語'.repeat(50_000),
    'lone surrogates': '\ud83d'.repeat(50_000),
    'a cut pair': `${'x'.repeat(999)}👋${'x'.repeat(999)}`,
    controls: '\0\r\n\x7f\x1b[31m'.repeat(20_000),
    'percent signs': '%'.repeat(50_000),
    'quotes and spaces': '" \\'.repeat(50_000),
  };
  for (const [what, text] of Object.entries(HUGE)) {
    it(`stay small and well-formed with ${what}`, () => {
      for (const count of [1, 2, 30, 1000]) {
        const { violations, reason } = decoded(invalid(many(count, text, text)));
        expect(reason).to.equal('INVALID_REQUEST');
        expect(violations.length, `${count} violations`).to.be.greaterThan(0);
        expect(violations[0]!.field).to.match(/^0\./);
      }
      const details: ErrorDetails = {
        metadata: { holder: text },
        quota: { subject: text, description: text },
        retryAfterMs: 5,
      };
      const told = decoded(new RpcError(status.FAILED_PRECONDITION, 'TURN_HELD', text, details));
      expect(told.reason).to.equal('TURN_HELD');
      expect(told.retry, 'small and useful: not given up for long text').to.deep.equal({
        seconds: 0,
        nanos: 5_000_000,
      });
    });
  }

  it('stay small and well-formed with any text in any place', () => {
    const text = fc
      .string({ unit: 'binary', maxLength: 3000 })
      .chain((s) => fc.constantFrom(s, `${s}\ud800`, s.repeat(9)));
    const details = fc.record(
      {
        metadata: fc.dictionary(text, text, { maxKeys: 4 }),
        violations: fc.array(fc.record({ field: text, description: text, reason: text }), { maxLength: 30 }),
        retryAfterMs: fc.double({ min: 0, max: 1e9, noNaN: true }),
        quota: fc.record({ subject: text, description: text }),
      },
      { requiredKeys: [] },
    );
    const sent = fc.property(
      text,
      details,
      (message, d) => void decoded(new RpcError(INVALID_ARGUMENT, 'ANY', message, d as ErrorDetails)),
    );
    fc.assert(sent, { numRuns: 60, seed: 20_260_727 });
  });

  it('tell the etag, the delay and the quota', () => {
    expect(decoded(etagMismatch('"a1"')).metadata).to.deep.equal({ etag: '"a1"' });
    expect(decoded(exhausted('TOO_MANY_CALLS', 'busy', 1250)).retry).to.deep.equal({ seconds: 1, nanos: 250_000_000 });
    expect(decoded(unavailable('AWAY', 'away')).retry).to.deep.equal({ seconds: 1, nanos: 0 });
    expect(decoded(denied('NO', 'no')).retry).to.equal(undefined);
    const quota = { subject: 'user:a', description: 'spent' };
    const [told] = decoded(new RpcError(RESOURCE_EXHAUSTED, 'BUDGET', 'spent', { quota })).quota!;
    expect(told).to.include(quota);
  });
});

describe('errors from inside', () => {
  const SECRET = 'the secret content';
  const postgres = (code: string, more: object = {}) =>
    Object.assign(new Error(SECRET), { code, severity: 'ERROR', detail: SECRET, ...more });
  const check = (constraint: string) => postgres('23514', { constraint });
  const MAPPED: [string, unknown, status, string, { retry?: boolean; field?: string }][] = [
    ['a database that is away', new DatabaseAway(SECRET), UNAVAILABLE, 'DATABASE_AWAY', { retry: true }],
    ['an unknown COMMIT', new CommitUnknown(SECRET), UNAVAILABLE, 'COMMIT_UNKNOWN', { retry: true }],
    ['no connection in time', new PoolExhausted(SECRET), RESOURCE_EXHAUSTED, 'POOL_EXHAUSTED', { retry: true }],
    ['a caller that is gone', new Interrupted(SECRET), DEADLINE_EXCEEDED, 'DEADLINE_EXCEEDED', {}],
    [
      'a foreign page token',
      new BadPageToken('not a page token of this list'),
      INVALID_ARGUMENT,
      'INVALID_REQUEST',
      { field: 'page_token' },
    ],
    [
      'a reused request_id',
      new RequestIdReused('used'),
      INVALID_ARGUMENT,
      'REQUEST_ID_REUSED',
      { field: 'request_id' },
    ],
    [
      'a Struct too large',
      check('sessions_state_size'),
      INVALID_ARGUMENT,
      'INVALID_REQUEST',
      { field: 'session.state' },
    ],
    [
      'too many refs',
      check('sessions_pinned_refs_count'),
      INVALID_ARGUMENT,
      'INVALID_REQUEST',
      { field: 'session.pinned_refs' },
    ],
    ['a bundle too large', check('bundles_size'), INVALID_ARGUMENT, 'INVALID_REQUEST', { field: 'selection' }],
    ['a check that nobody knows', check('tenants_tenant_id_check'), INTERNAL, 'INTERNAL', {}],
    ['text that cannot be stored', postgres('22021'), INVALID_ARGUMENT, 'INVALID_REQUEST', { field: '' }],
    ['text that JSON cannot hold', postgres('22P05'), INVALID_ARGUMENT, 'INVALID_REQUEST', { field: '' }],
    ['a serialization failure', postgres('40001'), ABORTED, 'CONFLICT', { retry: true }],
    ['a deadlock', postgres('40P01'), ABORTED, 'CONFLICT', { retry: true }],
    ['a cancelled statement', postgres('57014'), DEADLINE_EXCEEDED, 'DEADLINE_EXCEEDED', {}],
    ['too many connections', postgres('53300'), UNAVAILABLE, 'DATABASE_AWAY', { retry: true }],
    ['a database that starts', postgres('57P03'), UNAVAILABLE, 'DATABASE_AWAY', { retry: true }],
    ['a refused row', postgres('42501'), INTERNAL, 'INTERNAL', {}],
    ['a duplicate', postgres('23505'), INTERNAL, 'INTERNAL', {}],
    ['bad SQL', postgres('42601'), INTERNAL, 'INTERNAL', {}],
    ['a code of Node', Object.assign(new Error(SECRET), { code: '40001' }), INTERNAL, 'INTERNAL', {}],
    ['an error', new Error(SECRET), INTERNAL, 'INTERNAL', {}],
    ['a TypeError', new TypeError(SECRET), INTERNAL, 'INTERNAL', {}],
    ['a string', SECRET, INTERNAL, 'INTERNAL', {}],
    ['undefined', undefined, INTERNAL, 'INTERNAL', {}],
    ['null', null, INTERNAL, 'INTERNAL', {}],
    [
      'an object without a prototype',
      Object.assign(Object.create(null), { message: SECRET }),
      INTERNAL,
      'INTERNAL',
      {},
    ],
  ];
  for (const [what, error, code, reason, { retry = false, field }] of MAPPED) {
    it(`answer ${what} with ${status[code]}, ${reason}`, () => {
      const refusal = toRpcError(error);
      const told = decoded(refusal);
      expect(status[refusal.code]).to.equal(status[code]);
      expect(told.reason).to.equal(reason);
      expect(told.retry !== undefined, 'says when to try again').to.equal(retry);
      expect(told.violations.map((violation) => violation.field)).to.deep.equal(field === undefined ? [] : [field]);
      expect(JSON.stringify(told)).to.not.contain(SECRET);
      if (code === INTERNAL) expect(told.message).to.equal('internal error');
    });
  }

  it('reach the log without what Postgres, or a parser, quotes of the values that it was given', () => {
    const parser = (text: string) => {
      try {
        return JSON.parse(text);
      } catch (error) {
        return error;
      }
    };
    for (const code of ['22P02', '23505', '42601', '42704', 'P0001']) {
      const told = describeError(
        postgres(code, { where: SECRET, internalQuery: SECRET, routine: 'elog', position: '7' }),
      );
      expect(JSON.stringify(told)).to.not.contain(SECRET);
      expect(told).to.include({ type: 'DatabaseError', code, routine: 'elog', position: '7' });
      expect(told.stack).to.match(/^\s+at .*errors\.test\.ts/);
    }
    const unreadable = new Error('a document that cannot be read', { cause: parser(SECRET) });
    expect(parser(SECRET).message, 'a parser quotes').to.contain(SECRET.slice(0, 5));
    const told = describeError(unreadable);
    expect(told.message).to.equal('a document that cannot be read');
    expect(JSON.stringify(told.cause)).to.contain('errors.test.ts');
    expect(JSON.stringify(told.cause)).to.not.contain(SECRET.slice(0, 5));
    expect(describeError(SECRET)).to.deep.equal({ type: 'string' });
  });

  it('pass a refusal as it is', () => {
    const refusal = notFound('session');
    expect(toRpcError(refusal)).to.equal(refusal);
  });
});
