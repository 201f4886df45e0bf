import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

export interface Connection {
  cut(): void;
  deafen(): void;
}

/** What stands between the service and its database. */
export interface Interposed {
  /** The database behind the proxy. */
  readonly url: string;
  /** Called with what a client sends; what it gives is passed on. */
  toServer: (bytes: Buffer, connection: Connection) => Buffer;
  /** The same for what the server answers. */
  toClient: (bytes: Buffer, connection: Connection) => Buffer;
  close(): Promise<void>;
}

/** A TCP proxy before the database, that can change what passes, cut connections, or swallow what the server answers. */
export async function startProxy(target: string): Promise<Interposed> {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const upstream = connect(Number(port), hostname);
    let deaf = false;
    const cut = () => {
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', cut);
      socket.on('close', cut);
    }
    const control = { cut, deafen: () => (deaf = true) };
    client.on('data', (bytes) => upstream.write(proxy.toServer(bytes, control)));
    upstream.on('data', (bytes) => deaf || client.write(proxy.toClient(bytes, control)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = new URL(target);
  url.port = String((server.address() as AddressInfo).port);
  const proxy: Interposed = {
    url: url.href,
    toServer: (bytes) => bytes,
    toClient: (bytes) => bytes,
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return proxy;
}

/** Another text of the same length in place of one, in what passes. */
export function replaced(bytes: Buffer, text: string, other: string): Buffer {
  const at = bytes.indexOf(text);
  if (at < 0) return bytes;
  const changed = Buffer.from(bytes);
  changed.write(other, at);
  return changed;
}
