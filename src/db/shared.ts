import pg from 'pg';
import { type Call, Unit } from './exchange.ts';
import { DatabaseAway, isStale } from './failure.ts';
import { query, type Statement, type Value } from './statement.ts';

export interface SharedReads {
  read<Row>(
    scope: { tenant: string; env: string },
    statement: Statement<Row>,
    values: Value[],
    deadline: number,
  ): Promise<Row[]>;
  close(): Promise<void>;
}

/**
 * Point reads of all calls over a few connections. Each read is one unit with one Sync: the scope's settings and the
 * statement in one implicit transaction, so that nothing of it outlives the Sync or reaches the next unit.
 *
 * At 64 callers a GetSession by a transaction of its own cost 1.5 times the server CPU, and twice that of Postgres.
 * A read is never cancelled (a cancel could hit another call's unit), only timed out by the server.
 *
 * A point read has one good plan, which is made once: left to itself, Postgres plans a page anew each time, as it takes a
 * LIMIT that it knows for cheaper. The last 20 messages of a thread then took 350 µs of its CPU instead of 145.
 */
const PROLOGUE = query(
  `select set_config('app.tenant_id', $1, true), set_config('app.env', $2, true), set_config('statement_timeout', $3, true),
    set_config('plan_cache_mode', 'force_generic_plan', true)`,
);

interface Slot {
  client: pg.Client;
  ready: Promise<void>;
  pending: number;
  /** When the server must have answered the oldest of the pending units. */
  overdue: number;
}

// All units of one turn of the event loop leave in one write: a write per unit cost 3 % more server CPU.
class BatchedUnit<Row> extends Unit<Row> {
  protected override write(connection: any, messages: Buffer[]): void {
    const waiting: Buffer[] | undefined = connection.memorydBatch;
    if (waiting) {
      waiting.push(...messages);
      return;
    }
    connection.memorydBatch = messages;
    setImmediate(() => {
      const batch: Buffer[] = connection.memorydBatch;
      connection.memorydBatch = undefined;
      connection.stream.write(Buffer.concat(batch));
    });
  }
}

export function openSharedReads(settings: pg.ClientConfig, connections: number, prepared: boolean): SharedReads {
  const slots: (Slot | undefined)[] = new Array(connections).fill(undefined);
  let turn = 0;

  // A connection that answers nothing, not even a time-out, is dropped, and its units fail over.
  const watchdog = setInterval(() => {
    for (const slot of slots) {
      if (slot && slot.pending > 0 && Date.now() > slot.overdue) (slot.client as any).connection.stream.destroy();
    }
  }, 500);
  watchdog.unref();

  function connect(index: number): Slot {
    const client = new pg.Client(settings);
    const forget = () => {
      if (slots[index]?.client === client) slots[index] = undefined;
    };
    client.on('error', forget);
    client.on('end', forget);
    const ready = client.connect().then(
      () => {},
      (error) => {
        forget();
        throw new DatabaseAway('the database cannot be reached', { cause: error });
      },
    );
    ready.catch(() => {});
    const slot: Slot = { client, ready, pending: 0, overdue: 0 };
    slots[index] = slot;
    return slot;
  }

  // All reads of one turn of the event loop go to the same connection, in one write; the next turn's to the next one.
  let sameTurn = false;
  function slotOfTurn(): number {
    if (!sameTurn) {
      sameTurn = true;
      turn++;
      setImmediate(() => {
        sameTurn = false;
      });
    }
    return turn % slots.length;
  }

  return {
    async read(scope, statement, values, deadline) {
      const index = slotOfTurn();
      const slot = slots[index] ?? connect(index);
      if (!(slot.client as any)._connected) await slot.ready;
      const left = Math.max(1, deadline - Date.now());
      const calls: Call[] = [
        { statement: PROLOGUE, values: [scope.tenant, scope.env, `${left}ms`] },
        { statement, values },
      ];
      const unit = new BatchedUnit<any>(calls, prepared);
      if (slot.pending++ === 0) slot.overdue = 0;
      slot.overdue = Math.max(slot.overdue, Date.now() + left + 1000);
      slot.client.query(unit as any);
      try {
        return await unit.done;
      } catch (error) {
        if (isStale(error)) (slot.client as any).connection.stream.destroy(); // and with it what it had prepared
        throw error;
      } finally {
        slot.pending--;
      }
    },
    async close() {
      clearInterval(watchdog);
      await Promise.all(slots.map((slot) => slot?.client.end().catch(() => {})));
    },
  };
}
