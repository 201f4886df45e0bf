import { BinaryReader, BinaryWriter } from '@bufbuild/protobuf/wire';

/**
 * google.protobuf.Struct as plain JSON values, straight from and to the wire. The generated code uses it in place of its
 * own, which builds a message per value, and loses a key `__proto__`.
 */
export type JsonObject = { [key: string]: any };

// Deeper input is not even decoded: each level is a stack frame. Validation allows far fewer and names the field.
const MAX_DEPTH = 200;
export const TOO_DEEP = 'nested too deep';

function put(object: JsonObject, key: string, value: unknown): void {
  if (key === '__proto__') {
    Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });
  } else {
    object[key] = value;
  }
}

function decodeEntry(reader: BinaryReader, object: JsonObject, depth: number): void {
  const end = reader.uint32() + reader.pos;
  let key = '';
  let value: unknown = null;
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) key = reader.string();
    else if (tag === 18) value = decodeValue(reader, depth);
    else reader.skip(tag & 7);
  }
  put(object, key, value);
}

function decodeObject(reader: BinaryReader, length: number, depth: number): JsonObject {
  if (depth > MAX_DEPTH) throw new RangeError(TOO_DEEP);
  const end = reader.pos + length;
  const object: JsonObject = {};
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) decodeEntry(reader, object, depth);
    else reader.skip(tag & 7);
  }
  return object;
}

function decodeList(reader: BinaryReader, length: number, depth: number): unknown[] {
  if (depth > MAX_DEPTH) throw new RangeError(TOO_DEEP);
  const end = reader.pos + length;
  const list: unknown[] = [];
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) list.push(decodeValue(reader, depth));
    else reader.skip(tag & 7);
  }
  return list;
}

function decodeValue(reader: BinaryReader, depth: number): unknown {
  const end = reader.uint32() + reader.pos;
  let value: unknown = null;
  while (reader.pos < end) {
    const tag = reader.uint32();
    switch (tag) {
      case 8:
        reader.int32();
        value = null;
        break;
      case 17:
        value = reader.double();
        break;
      case 26:
        value = reader.string();
        break;
      case 32:
        value = reader.bool();
        break;
      case 42:
        value = decodeObject(reader, reader.uint32(), depth + 1);
        break;
      case 50:
        value = decodeList(reader, reader.uint32(), depth + 1);
        break;
      default:
        reader.skip(tag & 7);
    }
  }
  return value;
}

function encodeObject(object: JsonObject, writer: BinaryWriter): BinaryWriter {
  for (const key of Object.keys(object)) {
    const value = object[key];
    if (value === undefined) continue;
    writer.uint32(10).fork().uint32(10).string(key);
    encodeValue(value, writer.uint32(18).fork()).join();
    writer.join();
  }
  return writer;
}

function encodeValue(value: unknown, writer: BinaryWriter): BinaryWriter {
  switch (typeof value) {
    case 'string':
      return writer.uint32(26).string(value);
    case 'number':
      return writer.uint32(17).double(value);
    case 'boolean':
      return writer.uint32(32).bool(value);
    case 'object':
      if (value === null) break;
      if (!Array.isArray(value)) return encodeObject(value, writer.uint32(42).fork()).join();
      writer.uint32(50).fork();
      for (const element of value) encodeValue(element, writer.uint32(10).fork()).join();
      return writer.join();
  }
  return writer.uint32(8).int32(0);
}

/** The interface that generated code expects of a message type. */
export const Struct = {
  encode(object: JsonObject, writer: BinaryWriter = new BinaryWriter()): BinaryWriter {
    return encodeObject(object, writer);
  },
  decode(input: BinaryReader | Uint8Array, length?: number): JsonObject {
    const reader = input instanceof BinaryReader ? input : new BinaryReader(input);
    return decodeObject(reader, length ?? reader.len, 1);
  },
  wrap(object: JsonObject): JsonObject {
    return object;
  },
  unwrap(object: JsonObject): JsonObject {
    return object;
  },
};
