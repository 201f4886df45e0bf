import { expect } from 'chai';
import fc from 'fast-check';
import { type DeepPartial, Turn } from '../src/gen/memory/v1/turn.ts';
import { Check } from '../src/rpc/validate.ts';
import { checkTurn, RECORD_BYTES, recordBytes, recordOf } from '../src/turns/record.ts';
import { fitted, leastOf, summaryOf } from '../src/turns/summary.ts';
import { jsonBytes, shares } from '../src/turns/text.ts';
import { outOfProportion } from './fixtures/growth.ts';
import { json, row, times, UGLY } from './fixtures/results.ts';

describe('the recorder', () => {
  for (const [name, { payload, kept }] of Object.entries(UGLY)) {
    it(`keeps of ${name} exactly what it should`, () => {
      const bytes = Buffer.from(payload as string);
      expect(summaryOf(bytes)).to.deep.equal({ ...kept, bytes: bytes.length });
    });
  }

  it('takes as JSON what JSON.parse takes', () => {
    const spoiled = fc
      .tuple(
        fc.json(),
        fc.nat(),
        fc.constantFrom('', ',', ':', '"', '\\', '{', ']', '0', '-', 'e', '.', ' ', 't', '\t', '\x01', 'é'),
      )
      .map(
        ([text, at, what]) =>
          text.slice(0, at % (text.length + 1)) + what + text.slice((at % (text.length + 1)) + (at % 3)),
      );
    const number = fc.stringMatching(/^[-+]?[0-9.eE+-]{1,8}$/);
    const text = fc.stringMatching(/^"(\\.|\\u[0-9a-f]{3,5}|[^"\\]){0,5}"$/);
    fc.assert(
      fc.property(fc.oneof(fc.json(), spoiled, number, text), (candidate) => {
        let valid = true;
        try {
          JSON.parse(candidate);
        } catch {
          valid = false;
        }
        const { kind } = summaryOf(Buffer.from(candidate.toWellFormed()));
        expect(!['invalid', 'empty'].includes(kind), candidate).to.equal(valid);
      }),
      { numRuns: 3000 },
    );
  });

  it('stays small, well-formed and the same, whatever it is given', () => {
    const anything = fc.oneof(
      fc.json({ stringUnit: 'binary', maxDepth: 6 }).map((text) => Buffer.from(text)),
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
      fc
        .array(fc.dictionary(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme', maxLength: 900 })), {
          size: '+1',
        })
        .map((v) => Buffer.from(json(v))),
    );
    fc.assert(
      fc.property(anything, fc.nat(7000), (payload, most) => {
        const summary = summaryOf(payload);
        expect(summaryOf(payload)).to.deep.equal(summary);
        expect(summary.preview?.length ?? 0).to.be.at.most(5);
        for (const text of [...(summary.preview ?? []), ...(summary.columns ?? []), summary.error ?? '']) {
          expect([...text].length).to.be.at.most(500);
        }
        const fit = fitted(summary, most);
        expect(jsonBytes(fit)).to.be.at.most(Math.max(most, jsonBytes(leastOf(summary))));
        const text = json([summary, fit]);
        expect(text.isWellFormed() && !/(^|[^\\])(\\\\)*\\u(0000|d[89a-f])/i.test(text), text).to.equal(true);
      }),
      { numRuns: 1000 },
    );
  });

  const repeated = (unit: string) => (size: number) => `[${`${unit},`.repeat(size / (unit.length + 1) - 2)}1]`;
  const shapes = [
    ...['[]', '{}', '1', '""', 'null', '{"a":1}', '{"path":"x"}', '"\\u0000"', '[[1,2],[3]]'].map(repeated),
    (size: number) => '['.repeat(size / 2) + ']'.repeat(size / 2),
    (size: number) => '{"a":'.repeat(size / 6),
    (size: number) => `"${'\\"'.repeat(size / 2 - 1)}"`,
  ];
  for (const shape of shapes) {
    const what = shape(48).slice(0, 12);
    it(`costs by its length, not by what it is made of: ${what}`, async () => {
      const [most, few] = [2 ** 21, 2 ** 17];
      const payloads = new Map([most, few].map((size) => [size, Buffer.from(shape(size))]));
      expect(await outOfProportion((size) => summaryOf(payloads.get(size)!), most)).to.be.below(6);
    });
  }
});

describe('the record of a turn', () => {
  const letters = (count: number) => 'abcdefghij'.repeat(Math.ceil(count / 10)).slice(0, count);
  const turn = (fields: DeepPartial<Turn>) => Turn.fromPartial(fields as object);
  const rows = Buffer.from(json(times(100, row)));

  it('is all of a small turn', () => {
    const small = turn({
      query: 'q',
      response: 'r',
      intent: { value: 'ask', reasoning: 'why', confidence: 0.5 },
      plannerReasoning: 'plan',
      reflection: 'good',
      tasks: [
        { id: 'a', type: 'sql', status: 'done' },
        { id: 'b', dependsOn: ['a'] },
      ],
      results: [{ taskId: 'a', payloadJson: Buffer.from('7') }],
      report: { reportPath: '/r.md', summary: 's', previews: ['p'] },
    });
    expect(recordOf(small)).to.deep.equal({
      query: 'q',
      response: 'r',
      intent: { value: 'ask', reasoning: 'why', confidence: 0.5 },
      planner_reasoning: 'plan',
      reflection: 'good',
      tasks: [
        { id: 'a', type: 'sql', status: 'done' },
        { id: 'b', depends_on: ['a'] },
      ],
      results: [{ task_id: 'a', data: { kind: 'scalar', preview: ['7'], bytes: 1 } }],
      report: { report_path: '/r.md', summary: 's', previews: ['p'] },
      truncated: [],
    });
    expect(recordOf(turn({}))).to.include({ intent: null, report: null, planner_reasoning: '' });
  });

  it('keeps 2,000 characters of each text and 500 of each preview beside tables and tasks', () => {
    const long = letters(16 * 1024);
    const record = recordOf(
      turn({
        intent: { reasoning: long },
        plannerReasoning: long,
        reflection: long,
        tasks: times(20, (i) => ({
          id: `task-${i}`,
          type: 'sql',
          status: 'done',
          dependsOn: i ? [`task-${i - 1}`] : [],
        })),
        results: times(3, (i) => ({ taskId: `task-${i}`, payloadJson: rows })),
        report: { reportPath: '/r.md', summary: long, previews: times(20, () => long) },
      }),
    );
    const cut = `${long.slice(0, 1999)}…`;
    expect([record.intent!.reasoning, record.planner_reasoning, record.reflection]).to.deep.equal([cut, cut, cut]);
    expect(record.report).to.deep.equal({
      report_path: '/r.md',
      summary: cut,
      previews: times(5, () => `${long.slice(0, 499)}…`),
    });
    expect(record.tasks).to.have.length(20);
    expect(record.tasks[19]!.depends_on).to.deep.equal(['task-18']);
    for (const { data } of record.results) expect(data).to.deep.include({ kind: 'table', row_count: 100 });
    expect(record.truncated).to.deep.equal([
      'intent.reasoning',
      'planner_reasoning',
      'reflection',
      'report.summary',
      'report.previews',
    ]);
    expect(recordBytes(record)).to.be.at.most(RECORD_BYTES);
  });

  it('keeps the kind and count of 100 results, and all 100 tasks', () => {
    const record = recordOf(
      turn({
        tasks: times(100, (i) => ({ id: `task-${i}`, status: 'done' })),
        results: times(100, (i) => ({ taskId: `task-${i}`, payloadJson: rows })),
      }),
    );
    expect(record.tasks).to.have.length(100);
    expect(record.results.map((result) => result.task_id)).to.deep.equal(times(100, (i) => `task-${i}`));
    for (const { data } of record.results) expect(data).to.deep.include({ kind: 'table', row_count: 100 });
    expect(record.truncated).to.deep.equal([]);
  });

  it('says which fields are not whole when nothing fits', () => {
    const wide = '\u0001'.repeat(128);
    const record = recordOf(
      turn({
        intent: { value: '\u0001'.repeat(200), reasoning: '👋'.repeat(4000), confidence: 5e-324 },
        plannerReasoning: '👋'.repeat(4000),
        reflection: '👋'.repeat(4000),
        tasks: times(100, (i) => ({
          id: wide.slice(3) + i,
          type: wide,
          dependsOn: times(i, (j) => wide.slice(3) + j),
        })),
        results: times(100, (i) => ({ taskId: wide.slice(3) + i, payloadJson: rows })),
        report: { reportPath: '\u0001'.repeat(1024), summary: '👋'.repeat(4000), previews: times(20, () => wide) },
      }),
    );
    expect(recordBytes(record)).to.be.at.most(RECORD_BYTES);
    expect(record.truncated).to.include.members(['tasks', 'tasks.depends_on', 'results', 'reflection']);
    expect(record.results.length).to.be.below(100);
  });

  it('stays under 16 KiB beyond query and response, whatever it is given', () => {
    const text = (maxLength: number) =>
      fc.oneof(fc.string({ maxLength }), fc.string({ unit: 'binary', maxLength })).map((t) => t.repeat(40));
    const any = fc.record({
      query: text(50),
      intent: fc.record({
        value: fc.string({ maxLength: 200 }),
        reasoning: text(100),
        confidence: fc.double({ min: 0, max: 1, noNaN: true }),
      }),
      plannerReasoning: text(100),
      reflection: text(100),
      tasks: fc.array(
        fc.record({
          id: fc.string({ minLength: 1, maxLength: 128 }),
          type: fc.string({ maxLength: 128 }),
          dependsOn: fc.array(fc.string({ maxLength: 128 }), { maxLength: 20 }),
        }),
        { maxLength: 100 },
      ),
      results: fc.array(
        fc.record({
          taskId: fc.string({ minLength: 1, maxLength: 128 }),
          payloadJson: fc.json({ maxDepth: 4 }).map((t) => Buffer.from(t)),
        }),
        { maxLength: 100, size: 'max' },
      ),
      report: fc.record({ reportPath: text(20), summary: text(100), previews: fc.array(text(30), { maxLength: 20 }) }),
    });
    fc.assert(
      fc.property(any, (fields) => {
        const record = recordOf(turn(fields));
        expect(recordBytes(record)).to.be.at.most(RECORD_BYTES);
        expect(recordOf(turn(fields))).to.deep.equal(record);
        expect(json(record).isWellFormed()).to.equal(true);
      }),
      { numRuns: 200 },
    );
  });

  it('shares by weight, and gives what one leaves to the others', () => {
    expect(
      shares(100, [
        { want: 10, weight: 1 },
        { want: 500, weight: 1 },
        { want: 500, weight: 2 },
      ]),
    ).to.deep.equal([10, 30, 60]);
    expect(
      shares(100, [
        { want: 50, weight: 1 },
        { want: 20, weight: 1 },
      ]),
    ).to.deep.equal([50, 20]);
    expect(shares(-5, [{ want: 50, weight: 1 }])).to.deep.equal([0]);
  });
});

describe('a turn', () => {
  const faults = (fields: object) => {
    const check = new Check();
    checkTurn(check, 'turn', Turn.fromPartial(fields));
    return Object.fromEntries(check.violations.map(({ field, description }) => [field, description]));
  };
  const KIB = 1024;

  it('may be as large as its limits', () => {
    expect(faults({})).to.deep.equal({});
    const tasks = times(100, (i) => ({
      id: `t${i}`,
      dependsOn: times(i, (j) => `t${j}`),
      type: 'x'.repeat(128),
      status: '👋'.repeat(64),
    }));
    const large = {
      query: 'x'.repeat(64 * KIB),
      response: 'x'.repeat(256 * KIB),
      intent: { value: '👋'.repeat(200), reasoning: 'x'.repeat(16 * KIB), confidence: 1 },
      plannerReasoning: 'x'.repeat(16 * KIB),
      reflection: 'x'.repeat(16 * KIB),
      tasks,
      results: times(100, () => ({ taskId: 'any', payloadJson: Buffer.from('not JSON') })),
      report: {
        reportPath: 'x'.repeat(1024),
        summary: 'x'.repeat(16 * KIB),
        previews: times(20, () => 'x'.repeat(KIB)),
      },
    };
    expect(faults(large)).to.deep.equal({});
  });

  it('is refused for each limit that it breaks', () => {
    const long = 'é'.repeat(8 * KIB + 1);
    const report = { reportPath: '', summary: long, previews: times(21, () => '') };
    expect(
      faults({
        query: 'é'.repeat(32 * KIB + 1),
        response: 'x'.repeat(256 * KIB + 1),
        intent: { value: 'x'.repeat(201), reasoning: long, confidence: Number.NaN },
        plannerReasoning: long,
        reflection: 'a\0',
        results: [{ taskId: '', payloadJson: Buffer.from('1') }, { taskId: 'x'.repeat(129) }],
        report,
      }),
    ).to.deep.equal({
      'turn.query': 'over 64 KiB',
      'turn.response': 'over 256 KiB',
      'turn.intent.value': 'longer than 200 characters',
      'turn.intent.reasoning': 'over 16 KiB',
      'turn.intent.confidence': 'not from 0 to 1',
      'turn.planner_reasoning': 'over 16 KiB',
      'turn.reflection': 'contains NUL',
      'turn.results[0].task_id': 'required',
      'turn.results[1].task_id': 'longer than 128 characters',
      'turn.results[1].payload_json': 'required',
      'turn.report.report_path': 'required',
      'turn.report.summary': 'over 16 KiB',
      'turn.report.previews': 'more than 20',
    });
    expect(faults({ tasks: times(101, (i) => ({ id: `${i}` })), results: times(101, () => ({})) })).to.deep.equal({
      'turn.tasks': 'more than 100',
      'turn.results': 'more than 100',
    });
  });

  it('has tasks that are unique, known and in no circle', () => {
    const task = (id: string, ...dependsOn: string[]) => ({ id, dependsOn });
    expect(faults({ tasks: [task('a'), task('a'), task(''), task('b', 'x', '')] })).to.deep.equal({
      'turn.tasks[0].id': 'used twice in the turn',
      'turn.tasks[2].id': 'required',
      'turn.tasks[3].depends_on[0]': 'not a task of the turn',
      'turn.tasks[3].depends_on[1]': 'required',
    });
    const circle = 'waits for itself, in a circle';
    expect(
      faults({ tasks: [task('a', 'c'), task('b', 'a'), task('c', 'b'), task('d'), task('e', 'e')] }),
    ).to.deep.equal({
      'turn.tasks[0].depends_on': circle,
      'turn.tasks[1].depends_on': circle,
      'turn.tasks[2].depends_on': circle,
      'turn.tasks[4].depends_on': circle,
    });
    expect(faults({ tasks: [task('b', 'a'), task('a'), task('c', 'a', 'b', 'a')] })).to.deep.equal({});
    expect(faults({ tasks: [{ id: 'a', dependsOn: times(101, () => 'a') }] })).to.deep.equal({
      'turn.tasks[0].depends_on': 'more than 100',
    });
  });
});
