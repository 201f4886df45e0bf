import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/** What passes in one direction: what it gives is passed on, in order, when it is there. */
export type Hook = (bytes: Buffer, connection: Connection) => Buffer | Promise<Buffer>;

export interface Connection {
  cut(): void;
  /** Swallows from now on what the server answers. */
  deafen(): void;
}

/** What stands between two ends of a connection: the service and its database, or a client and the service. */
export interface Interposed {
  /** What is behind the proxy, by the way through it. */
  readonly url: string;
  /** What is behind it: new connections go where it says. */
  target: string;
  /** Called with what a client sends. */
  toServer: Hook;
  /** Called with what the server answers. */
  toClient: Hook;
  /** Cuts all connections that there are. */
  cutAll(): void;
  close(): Promise<void>;
}

const unchanged: Hook = (bytes) => bytes;

/** A TCP proxy that can change or delay what passes, cut connections, or swallow what the server answers. */
export async function startProxy(target: string): Promise<Interposed> {
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const { hostname, port } = new URL(proxy.target);
    const upstream = connect(Number(port), hostname);
    let deaf = false;
    const cut = () => {
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', cut);
      socket.on('close', () => {
        sockets.delete(socket);
        cut();
      });
    }
    const control = { cut, deafen: () => (deaf = true) };
    client.on(
      'data',
      inOrder(
        (bytes) => proxy.toServer(bytes, control),
        (bytes) => upstream.write(bytes),
      ),
    );
    upstream.on(
      'data',
      inOrder(
        (bytes) => proxy.toClient(bytes, control),
        (bytes) => deaf || client.write(bytes),
      ),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = new URL(target);
  url.port = String((server.address() as AddressInfo).port);
  const cutAll = () => {
    for (const socket of sockets) socket.destroy();
  };
  const proxy: Interposed = {
    url: url.href,
    target,
    toServer: unchanged,
    toClient: unchanged,
    cutAll,
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      cutAll();
      await closed;
    },
  };
  return proxy;
}

/** Writes what `change` gives in the order of what came, at once where nothing has to be awaited. */
function inOrder(change: (bytes: Buffer) => Buffer | Promise<Buffer>, write: (bytes: Buffer) => unknown) {
  let waiting: Promise<unknown> | undefined;
  return (bytes: Buffer) => {
    const changed = change(bytes);
    if (!waiting && Buffer.isBuffer(changed)) {
      write(changed);
      return;
    }
    const written = Promise.all([changed, waiting]).then(([ready]) => {
      write(ready);
      if (waiting === written) waiting = undefined;
    });
    waiting = written;
  };
}

/** Another text of the same length in place of one, in what passes. */
export function replaced(bytes: Buffer, text: string, other: string): Buffer {
  const at = bytes.indexOf(text);
  if (at < 0) return bytes;
  const changed = Buffer.from(bytes);
  changed.write(other, at);
  return changed;
}
