import { expect } from 'chai';
import fc from 'fast-check';
import { assemble, type Limits, type Material } from '../src/contexts/assemble.ts';
import { ContextSection } from '../src/gen/memory/v1/conversation_service.ts';

const { PREFERENCES, PROFILE, PINNED, PROJECT_PROFILE, SUMMARIES } = ContextSection;
const { SESSION_CONTEXT, LATEST_TURN, MESSAGES, MEMORIES, DRAFTS } = ContextSection;
const OF_PEOPLE = [PREFERENCES, PROFILE, PINNED, SUMMARIES, SESSION_CONTEXT, LATEST_TURN];
const OTHERS = [...OF_PEOPLE, PROJECT_PROFILE, MEMORIES, DRAFTS];
const ALL = [...OTHERS, MESSAGES];

describe('what a context keeps', () => {
  const { POSITIVE_INFINITY } = Number;
  const cost = fc.record({ tokens: fc.nat(60), bytes: fc.nat(300) });
  const material: fc.Arbitrary<Material & { through: number[] }> = fc
    .record({
      sections: fc.uniqueArray(fc.tuple(fc.constantFrom(...OTHERS), fc.array(cost, { maxLength: 12 })), {
        selector: ([section]): number => section,
      }),
      through: fc.array(fc.nat(45), { minLength: 12, maxLength: 12 }),
      messages: fc.option(fc.array(cost, { maxLength: 40 }), { nil: undefined }),
      first: fc.integer({ min: 1, max: 20 }),
    })
    .map(({ sections, through, messages, first }) => {
      const items = new Map(sections);
      const lastSeq = first + (messages?.length ?? 0) - 1;
      return {
        items,
        through,
        coverage: through.slice(0, items.get(SUMMARIES)?.length ?? 0),
        messages: messages && {
          costs: messages.map((each, i) => ({ ...each, seq: lastSeq - i })),
          firstSeq: first,
          lastSeq,
        },
      };
    });
  const limits: fc.Arbitrary<Limits> = fc.record({
    maxTokens: fc.option(fc.integer({ min: 1, max: 1500 }), { nil: undefined }),
    maxBytes: fc.oneof(fc.nat(8000), fc.constant(1e6)),
    budgets: fc
      .uniqueArray(fc.tuple(fc.constantFrom(...ALL), fc.nat(300)), { selector: ([section]): number => section })
      .map((entries) => new Map(entries)),
  });
  const sum = (costs: { tokens: number; bytes: number }[], of: 'tokens' | 'bytes') =>
    costs.reduce((total, each) => total + each[of], 0);

  it('is never too much, tells all that it leaves out, and wastes nothing', () => {
    fc.assert(
      fc.property(material, limits, ({ items, coverage, messages }, asked) => {
        const plan = assemble({ items, coverage, messages }, asked);
        expect(assemble({ items, coverage, messages }, asked)).to.deep.equal(plan);
        const kept = [...items].map(([section, costs]) => ({
          section,
          costs: costs.filter((_, i) => plan.kept.get(section)![i]),
          all: costs.length,
        }));
        const said = messages?.costs.slice(0, plan.keptMessages) ?? [];
        if (messages) kept.push({ section: MESSAGES, costs: said, all: messages.costs.length });
        const everything = kept.flatMap(({ costs }) => costs);
        expect(sum(everything, 'tokens')).to.be.at.most(asked.maxTokens ?? POSITIVE_INFINITY);
        expect(sum(everything, 'bytes')).to.be.at.most(asked.maxBytes);
        for (const { section, costs, all } of kept) {
          expect(sum(costs, 'tokens')).to.be.at.most(asked.budgets.get(section) ?? POSITIVE_INFINITY);
          expect(plan.tokens.get(section)).to.equal(sum(costs, 'tokens'));
          const told = plan.truncated.filter((t) => t.section === section);
          expect(told.reduce((n, { leftOut }) => n + leftOut, 0)).to.equal(all - costs.length);
          expect(new Set(told.map(({ reason }) => reason)).size).to.equal(told.length);
        }

        // Of what fits as a whole nothing is left out.
        const whole = [...items.values(), messages?.costs ?? []].flat();
        const inBudget = [...items, [MESSAGES, messages?.costs ?? []] as const].every(
          ([section, costs]) => sum([...costs], 'tokens') <= (asked.budgets.get(section) ?? POSITIVE_INFINITY),
        );
        const fits =
          sum(whole, 'tokens') <= (asked.maxTokens ?? POSITIVE_INFINITY) && sum(whole, 'bytes') <= asked.maxBytes;
        if (fits && inBudget) expect(plan.truncated).to.deep.equal([]);
        if (!messages) return;

        // The next older message is covered by a summary that is kept, or does not fit.
        const next = messages.costs[plan.keptMessages];
        if (!next) return;
        const through = Math.max(0, ...coverage.filter((_, i) => plan.kept.get(SUMMARIES)?.[i]));
        const tooMuch =
          sum(said, 'tokens') + next.tokens > (asked.budgets.get(MESSAGES) ?? POSITIVE_INFINITY) ||
          sum(everything, 'tokens') + next.tokens > (asked.maxTokens ?? POSITIVE_INFINITY) ||
          sum(everything, 'bytes') + next.bytes > asked.maxBytes;
        expect(tooMuch || next.seq <= through).to.equal(true);
        const told = plan.truncated.some((t) => t.section === MESSAGES && t.reason === 'SUMMARY');
        expect(told).to.equal(next.seq <= through || messages.firstSeq <= Math.min(through, next.seq));
        // Half of all tokens is theirs, up to a message that does not fit.
        if (
          !told &&
          asked.maxTokens &&
          !asked.budgets.has(MESSAGES) &&
          sum(everything, 'bytes') + next.bytes <= asked.maxBytes / 2
        ) {
          expect(sum(said, 'tokens') + next.tokens).to.be.above(Math.floor(asked.maxTokens / 2));
        }
      }),
      { numRuns: 2000 },
    );
  });
});
