import { parentPort } from 'node:worker_threads';
import { createCount } from './bpe.ts';

// The thread that counts.

const LOAD = {
  async o200k_base() {
    const { default: vocabulary } = await import('gpt-tokenizer/bpeRanks/o200k_base');
    const { O200K_TOKEN_SPLIT_REGEX } = await import('gpt-tokenizer/encodingParams/constants');
    return createCount(vocabulary, O200K_TOKEN_SPLIT_REGEX);
  },
  async cl100k_base() {
    const { default: vocabulary } = await import('gpt-tokenizer/bpeRanks/cl100k_base');
    const { CL100K_TOKEN_SPLIT_REGEX } = await import('gpt-tokenizer/encodingParams/constants');
    return createCount(vocabulary, CL100K_TOKEN_SPLIT_REGEX);
  },
};

export type Tokenizer = keyof typeof LOAD;

/** Texts, each list with its tokenizer. It is answered with their counts. */
export type Batch = [Tokenizer, string[]][];

const loaded = new Map<Tokenizer, ReturnType<(typeof LOAD)[Tokenizer]>>();

function counterOf(tokenizer: Tokenizer) {
  const known = loaded.get(tokenizer);
  if (known) return known;
  const loading = LOAD[tokenizer]();
  loaded.set(tokenizer, loading);
  return loading;
}

parentPort!.on('message', async (batch: Batch) => {
  const counts: number[][] = [];
  for (const [tokenizer, texts] of batch) counts.push(texts.map(await counterOf(tokenizer)));
  parentPort!.postMessage(counts);
});
