import { readFileSync } from 'node:fs';
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { status } from '@grpc/grpc-js';
import type { ServerReflectionResponse } from '../gen/grpc/reflection/v1/reflection.ts';
import { ServerReflectionDefinition, ServerReflectionService } from '../gen/grpc/reflection/v1/reflection.ts';
import {
  ServerReflectionDefinition as ServerReflectionAlphaDefinition,
  ServerReflectionService as ServerReflectionAlphaService,
} from '../gen/grpc/reflection/v1alpha/reflection.ts';
import { type Handlers, implement, type Service } from './implement.ts';
import type { Kernel } from './kernel.ts';

/** The compiled protos, imports included, exactly as `buf build` gave them: see `npm run generate`. */
const DESCRIPTORS = new URL('../gen/descriptors.binpb', import.meta.url);

interface File {
  name: string;
  bytes: Buffer;
  imports: string[];
  symbols: string[];
}

/** The fields of descriptor.proto that hold named things, and what is inside of these. */
interface Level {
  [field: number]: Level;
}
const NAME = 1;
const LEAF: Level = {};
const MESSAGE: Level = { 2: LEAF, 6: LEAF, 8: LEAF };
const ENUM: Level = {};
const SERVICE: Level = { 2: LEAF };
MESSAGE[3] = MESSAGE;
MESSAGE[4] = ENUM;
const FILE: Level = { 4: MESSAGE, 5: ENUM, 6: SERVICE, 7: LEAF };
const FILE_PACKAGE = 2;
const FILE_IMPORT = 3;
const ENUM_VALUE = 2;

/** The length-delimited fields of a message. Descriptors are read without their schema, which would cost 5 MB. */
function* fieldsOf(bytes: Uint8Array): Iterable<[number, Uint8Array]> {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (wireType === 2) yield [field, reader.bytes()];
    else reader.skip(wireType);
  }
}

const text = (bytes: Uint8Array | undefined): string => Buffer.from(bytes ?? []).toString();
const nameIn = (bytes: Uint8Array): string => text([...fieldsOf(bytes)].find(([field]) => field === NAME)?.[1]);

function* symbolsIn(bytes: Uint8Array, level: Level, scope: string): Iterable<string> {
  for (const [field, inner] of fieldsOf(bytes)) {
    const next = level[field];
    if (!next) continue;
    const name = scope ? `${scope}.${nameIn(inner)}` : nameIn(inner);
    yield name;
    yield* symbolsIn(inner, next, name);
    if (next !== ENUM) continue;
    // The values of an enum are named beside it, not inside of it.
    for (const [at, value] of fieldsOf(inner))
      if (at === ENUM_VALUE) yield scope ? `${scope}.${nameIn(value)}` : nameIn(value);
  }
}

function readFile(bytes: Uint8Array): File {
  const fields = [...fieldsOf(bytes)];
  const scope = text(fields.find(([field]) => field === FILE_PACKAGE)?.[1]);
  return {
    name: nameIn(bytes),
    bytes: Buffer.from(bytes),
    imports: fields.filter(([field]) => field === FILE_IMPORT).map(([, name]) => text(name)),
    symbols: [...symbolsIn(bytes, FILE, scope)],
  };
}

interface Index {
  byName: Map<string, File>;
  bySymbol: Map<string, File>;
}

// Read at the first use: most processes are never asked.
let index: Index | undefined;

function descriptors(): Index {
  if (index) return index;
  const files = [...fieldsOf(readFileSync(DESCRIPTORS))].map(([, bytes]) => readFile(bytes));
  index = {
    byName: new Map(files.map((file) => [file.name, file])),
    bySymbol: new Map(files.flatMap((file) => file.symbols.map((symbol): [string, File] => [symbol, file]))),
  };
  return index;
}

/** A file and what it imports, as far as the stream has not sent it yet. */
function withImports(file: File, sent: Set<string>): Buffer[] {
  const files = new Set([file]);
  for (const { imports } of files) {
    for (const name of imports) {
      const imported = descriptors().byName.get(name);
      if (imported && !sent.has(name)) files.add(imported);
    }
  }
  for (const { name } of files) sent.add(name);
  return [...files].map(({ bytes }) => bytes);
}

type Answer = NonNullable<ServerReflectionResponse['messageResponse']>;

const notFound = (what: string): Answer => ({
  $case: 'errorResponse',
  value: { errorCode: status.NOT_FOUND, errorMessage: `${what.slice(0, 200)} not found`.toWellFormed() },
});

/** Server reflection, v1 and v1alpha, of the services that are named. */
export function reflection(kernel: Kernel, services: string[]): Service[] {
  const names = [...services, 'grpc.reflection.v1.ServerReflection', 'grpc.reflection.v1alpha.ServerReflection'].sort();

  function answer(ask: { $case: string; value: unknown } | undefined, sent: Set<string>): Answer {
    const value = String(ask?.value);
    const found = (file: File | undefined): Answer =>
      file
        ? { $case: 'fileDescriptorResponse', value: { fileDescriptorProto: withImports(file, sent) } }
        : notFound(value);
    switch (ask?.$case) {
      case 'listServices':
        return { $case: 'listServicesResponse', value: { service: names.map((name) => ({ name })) } };
      case 'fileByFilename':
        return found(descriptors().byName.get(value));
      case 'fileContainingSymbol':
        return found(descriptors().bySymbol.get(value.replace(/^\./, '')));
      case 'fileContainingExtension':
      case 'allExtensionNumbersOfType':
        return notFound('extension');
      default:
        return {
          $case: 'errorResponse',
          value: { errorCode: status.INVALID_ARGUMENT, errorMessage: 'nothing is asked' },
        };
    }
  }

  // Both versions have the same messages, field by field.
  const handlers: Handlers<typeof ServerReflectionService> = {
    async *serverReflectionInfo(requests) {
      const sent = new Set<string>();
      for await (const request of requests) {
        const { host, messageRequest } = request;
        yield { validHost: host, originalRequest: request, messageResponse: answer(messageRequest, sent) };
      }
    },
  };
  const access = { serverReflectionInfo: { public: true } };
  return [
    implement(kernel, ServerReflectionService, ServerReflectionDefinition, handlers, access),
    implement(
      kernel,
      ServerReflectionAlphaService,
      ServerReflectionAlphaDefinition,
      handlers as Handlers<typeof ServerReflectionAlphaService>,
      access,
    ),
  ];
}
