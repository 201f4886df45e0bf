import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Registry } from 'prom-client';
import { listenFault } from './transport.ts';

/** What is told about: one server, or several. */
export interface Watched {
  metrics(): Promise<string>;
  /** Why calls cannot be served, or undefined. */
  fault(): Promise<string | undefined>;
}

export interface Endpoint {
  readonly port: number;
  close(): Promise<void>;
}

/** The HTTP port for machines that watch this one: `/metrics` for Prometheus, `/livez` and `/readyz` for Kubernetes. */
export async function serveMetrics(host: string, port: number, watched: Watched): Promise<Endpoint> {
  const server = createServer(async (request, response) => {
    const answer = (code: number, body: string, type = 'text/plain; charset=utf-8') =>
      response.writeHead(code, { 'content-type': type }).end(request.method === 'HEAD' ? undefined : body);
    if (request.method !== 'GET' && request.method !== 'HEAD') return answer(405, 'only GET\n');
    switch (request.url?.split('?')[0]) {
      case '/livez':
        return answer(200, 'ok\n');
      case '/readyz': {
        const fault = await watched.fault();
        return fault ? answer(503, `${fault}\n`) : answer(200, 'ok\n');
      }
      case '/metrics':
        try {
          return answer(200, await watched.metrics(), Registry.PROMETHEUS_CONTENT_TYPE);
        } catch {
          return answer(500, 'the metrics cannot be collected\n');
        }
      default:
        return answer(404, 'not found: there are /metrics, /livez and /readyz\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(listenFault(error, host, port, '--metrics-port')));
    server.listen(port, host.replace(/^\[|\]$/g, ''), resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
