import { BadSnapshot, type Parts } from '../snapshots/archive.ts';

/**
 * What snapshots hold, by the folder in them: rows of these tables, each as JSON of its columns, with its text in a file of its
 * own. Rows never change, but for inputs, which are added to. What is not here follows from the rest: what is locked from what
 * artifacts name, and which revision or version is the newest.
 */
export const RECORDS = {
  profiles: {
    more: [],
    table: 'project_profile_versions',
    columns: ['project_id', 'version', 'base_version', 'merged', 'stub', 'create_time', 'created_by'],
    text: 'yaml',
    extension: 'yaml',
  },
  inputs: {
    more: [],
    table: 'project_inputs',
    columns: [
      ...[
        'id',
        'project_id',
        'session_id',
        'file_name',
        'media_type',
        'size_bytes',
        'sha256',
        'uri',
        'metadata',
        'sections',
      ],
      ...['create_time', 'update_time', 'created_by', 'updated_by'],
    ],
    text: 'content',
    extension: 'txt',
  },
  sections: {
    /** When the section was first locked, and by whom: its own row has nothing else that its revisions do not tell. */
    more: ['draft_create_time', 'draft_created_by'],
    table: 'draft_revisions',
    columns: [
      ...['project_id', 'section_id', 'revision', 'session_id', 'sources', 'prompts', 'metadata', 'content_diff'],
      ...['sources_diff', 'diff_truncated', 'restored_revision', 'profile_version', 'create_time', 'created_by'],
    ],
    text: 'content',
    extension: 'txt',
  },
  artifacts: {
    more: [],
    table: 'artifacts',
    columns: [
      ...['id', 'project_id', 'artifact_key', 'version', 'session_id', 'sections', 'profile_version', 'reviewers'],
      ...['approvals', 'gate_stage', 'metadata', 'create_time', 'created_by'],
    ],
    text: 'final_output',
    extension: 'txt',
  },
};

export type RecordKind = keyof typeof RECORDS;

/** A row without tenant, env and text, as the JSON that Postgres makes of it, in which numbers stay exact; and its text. */
export interface Kept {
  kind: RecordKind;
  row: string;
  text: string;
}

export function partsOf(records: Kept[]): Parts {
  const parts: Parts = new Map();
  for (const { kind, row, text } of records) {
    const { extension } = RECORDS[kind];
    const before = [...parts.keys()].filter((name) => name.startsWith(`${kind}/`)).length / 2;
    const name = `${kind}/${String(before + 1).padStart(3, '0')}`;
    parts.set(`${name}.json`, Buffer.from(`${row}\n`));
    parts.set(`${name}.${extension}`, Buffer.from(text));
  }
  return parts;
}

export function recordsOf(parts: Parts): Kept[] {
  return [...parts].flatMap(([name, bytes]) => {
    const [, path, kind] = /^((\w+)\/\d+)\.json$/.exec(name) ?? [];
    if (!path) return [];
    const record = RECORDS[kind as RecordKind];
    const text = record && parts.get(`${path}.${record.extension}`);
    if (!text) throw new BadSnapshot(`this version does not know ${name}`);
    return [{ kind: kind as RecordKind, row: bytes.toString(), text: text.toString() }];
  });
}
