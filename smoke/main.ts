import { parseArgs } from 'node:util';
import { Client, credentials } from '@grpc/grpc-js';
import { bufCurl, type Caller, grpcurl, hasGrpcurl, protoLoader } from './callers.ts';
import { moving } from './moving.ts';
import { tour } from './tour.ts';

const HELP = `npm run smoke [-- --address HOST:PORT]

Shows the service at work on a running server, and fails if it answers otherwise than it should: once by buf curl, once
by grpcurl where it is installed, and once by a client that @grpc/proto-loader makes of the protos. It calls as users of
the tenants that \`npm start\` makes.

  --address  Where the server is. 127.0.0.1:50051 by default.`;

/** Anything that speaks gRPC there. */
function answers(address: string): Promise<boolean> {
  const client = new Client(address, credentials.createInsecure());
  return new Promise((resolve) => {
    client.waitForReady(Date.now() + 3000, (error) => {
      client.close();
      resolve(!error);
    });
  });
}

async function run(caller: Caller, walk: typeof tour): Promise<boolean> {
  try {
    await walk(caller, (step, answer) => console.log(`  ${step.padEnd(18)} ${answer}`));
    return true;
  } catch (error) {
    console.log(`  SURPRISE           ${(error as Error).message}`);
    return false;
  }
}

async function main(): Promise<number> {
  let settings: { address: string; help: boolean };
  try {
    const options = {
      address: { type: 'string', default: '127.0.0.1:50051' },
      help: { type: 'boolean', default: false },
    } as const;
    settings = parseArgs({ options }).values;
  } catch (error) {
    console.error(`smoke: ${(error as Error).message}`);
    return 1;
  }
  if (settings.help) {
    console.log(HELP);
    return 0;
  }
  const { address } = settings;
  if (!(await answers(address))) {
    console.error(
      `smoke: no server at ${address}: start one with \`npm start\`, or name another with \`npm run smoke -- --address HOST:PORT\`.`,
    );
    return 1;
  }
  console.log(`A tour of the server at ${address}`);
  const callers = [bufCurl(address), ...((await hasGrpcurl()) ? [grpcurl(address)] : []), protoLoader(address)];
  let surprises = 0;
  for (const [i, caller] of callers.entries()) {
    console.log(`\nWith ${caller.name}`);
    // The commands between are the same whoever calls.
    const walks = i === 0 ? [tour, moving] : [tour];
    for (const walk of walks) if (!(await run(caller, walk))) surprises++;
    caller.close();
  }
  console.log(surprises ? `\n${surprises} of ${callers.length + 1} tours met a surprise.` : '\nNo surprises.');
  return surprises ? 1 : 0;
}

process.exitCode = await main();
