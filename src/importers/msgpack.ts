import { decode, type ExtensionCodecType } from '@msgpack/msgpack';

// What LangGraph's serializer for Python writes: MessagePack, and an extension for each way to make an object, which holds
// module, class and argument, and never code. The argument is all that is kept of it.

const ARGUMENT = 2;
/** A class with one argument, with positional or named ones, by a method, a model of Pydantic 1 or 2. */
const OBJECTS = [0, 1, 2, 3, 4, 5];
const ARRAY_OF_NUMPY = 6;
const SNAPSHOT = 7;

const extensionCodec: ExtensionCodecType<undefined> = {
  tryToEncode: () => null,
  decode(data, type) {
    if (type === ARRAY_OF_NUMPY) return null;
    const value = unpack(data);
    if (type === SNAPSHOT) return value;
    return OBJECTS.includes(type) && Array.isArray(value) ? (value[ARGUMENT] ?? null) : null;
  },
};

/** The value as plain JSON: bytes are base64, and an object is the argument that makes it. */
export const unpack = (data: Uint8Array): unknown =>
  json(decode(data, { extensionCodec, mapKeyConverter: (key) => String(key) }));

function json(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('base64');
  if (value instanceof Date) return value.toISOString();
  if (Array.isArray(value)) return value.map(json);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, json(item)]));
}
