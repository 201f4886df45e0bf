import { readFileSync } from 'node:fs';
import { createFileRegistry, fromBinary, type JsonObject, toJson } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { WatchSessionResponse } from '../gen/memory/v1/memory_service.ts';
import { ThreadEvent } from '../gen/memory/v1/thread_event.ts';

/** What the watch of a thread, or of a session, tells. */
export type Told = ThreadEvent | WatchSessionResponse;
export type Kind = 'thread' | 'session';

/** Makes text of what is told, event by event. */
export interface Telling {
  tell(told: Told): string;
  /** Ends the line, if it was left open for what comes. */
  pause(): string;
}

// What would move the cursor, colour what follows, or turn the order of the letters.
const UNSEEN = /[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/gu;

/** The text with what a terminal would act upon spelled out, as JSON spells it. Line feeds and tabs stay. */
export const visible = (text: string): string =>
  text.replaceAll('\r\n', '\n').replace(UNSEEN, (character) => {
    if (character === '\n' || character === '\t') return character;
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });

let registry: ReturnType<typeof createFileRegistry> | undefined;

/** Protobuf's JSON of an encoded message, by the descriptors that also answer reflection. */
export function protoJson(type: string, bytes: Uint8Array): JsonObject {
  registry ??= createFileRegistry(
    fromBinary(FileDescriptorSetSchema, readFileSync(new URL('../gen/descriptors.binpb', import.meta.url))),
  );
  const schema = registry.getMessage(`memory.v1.${type}`)!;
  return toJson(schema, fromBinary(schema, bytes), { registry }) as JsonObject;
}

const JSON_OF: Record<Kind, (told: any) => JsonObject> = {
  thread: (event) => protoJson('ThreadEvent', ThreadEvent.encode(event).finish()),
  session: (event) => protoJson('WatchSessionResponse', WatchSessionResponse.encode(event).finish()),
};

/** A line for each event, as `buf curl` and `grpcurl` name things. Bookmarks, which tell nothing new, are left out. */
export const jsonLines = (kind: Kind): Telling => ({
  tell: (told) => (told.event?.$case === 'bookmark' ? '' : `${visible(JSON.stringify(JSON_OF[kind](told)))}\n`),
  pause: () => '',
});
