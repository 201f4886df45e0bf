import { BinaryReader } from '@bufbuild/protobuf/wire';
import { ChannelCredentials, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import {
  type ServerReflectionRequest,
  type ServerReflectionResponse,
  ServerReflectionClient as V1,
} from '../src/gen/grpc/reflection/v1/reflection.ts';
import { ServerReflectionClient as V1Alpha } from '../src/gen/grpc/reflection/v1alpha/reflection.ts';
import type { RunningServer } from '../src/server.ts';
import { startTestServer } from './support.ts';

type Ask = NonNullable<ServerReflectionRequest['messageRequest']>;
type Answer = NonNullable<ServerReflectionResponse['messageResponse']>;

/** The name (field 1) and the imports (field 3) of a FileDescriptorProto. */
function fileOf(bytes: Uint8Array): { name: string; imports: string[] } {
  const reader = new BinaryReader(bytes);
  const file = { name: '', imports: [] as string[] };
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === 1) file.name = reader.string();
    else if (field === 3) file.imports.push(reader.string());
    else reader.skip(type);
  }
  return file;
}

for (const [version, Client] of [
  ['v1', V1],
  ['v1alpha', V1Alpha],
] as const) {
  describe(`reflection ${version}`, () => {
    let server: RunningServer;
    let client: InstanceType<typeof V1>;

    before(async () => {
      server = await startTestServer();
      client = new Client(`127.0.0.1:${server.port}`, ChannelCredentials.createInsecure()) as InstanceType<typeof V1>;
    });
    after(async () => {
      client.close();
      await server.stop();
    });

    /** The answers to questions asked over one stream, without any identity. */
    async function ask(...questions: Ask[]): Promise<Answer[]> {
      const stream = client.serverReflectionInfo();
      for (const messageRequest of questions) stream.write({ host: 'h', messageRequest });
      stream.end();
      const answers: Answer[] = [];
      for await (const response of stream as AsyncIterable<ServerReflectionResponse>) {
        expect(response.validHost).to.equal('h');
        answers.push(response.messageResponse!);
      }
      return answers;
    }

    const symbol = (value: string): Ask => ({ $case: 'fileContainingSymbol', value });
    const filesIn = (answer: Answer) =>
      answer.$case === 'fileDescriptorResponse'
        ? answer.value.fileDescriptorProto.map(fileOf)
        : expect.fail(JSON.stringify(answer));

    it('lists the services', async () => {
      const [answer] = await ask({ $case: 'listServices', value: '' });
      expect(answer!.$case === 'listServicesResponse' && answer!.value.service.map(({ name }) => name)).to.deep.equal([
        'grpc.health.v1.Health',
        'grpc.reflection.v1.ServerReflection',
        'grpc.reflection.v1alpha.ServerReflection',
        'memory.v1.AdminService',
        'memory.v1.ArtifactService',
        'memory.v1.AuditService',
        'memory.v1.ConversationService',
        'memory.v1.MemoryService',
        'memory.v1.ProfileService',
        'memory.v1.ProjectMemoryService',
        'memory.v1.UsageService',
      ]);
    });

    it('finds files by any kind of symbol', async () => {
      const symbols: [string, string][] = [
        ['memory.v1.MemoryService', 'memory/v1/memory_service.proto'],
        ['memory.v1.MemoryService.GetSession', 'memory/v1/memory_service.proto'],
        ['memory.v1.Tenant', 'memory/v1/tenant.proto'],
        ['memory.v1.Tenant.tenant_id', 'memory/v1/tenant.proto'],
        ['memory.v1.TenantPolicies.Pii', 'memory/v1/tenant.proto'],
        ['memory.v1.TenantPolicies.PII_REJECT', 'memory/v1/tenant.proto'],
        ['grpc.health.v1.Health', 'grpc/health/v1/health.proto'],
        ['google.rpc.ErrorInfo', 'google/rpc/error_details.proto'],
        ['google.protobuf.Struct', 'google/protobuf/struct.proto'],
        ['grpc.reflection.v1.ServerReflection', 'grpc/reflection/v1/reflection.proto'],
      ];
      for (const [name, file] of symbols) {
        const [answer] = await ask(symbol(name));
        expect(filesIn(answer!)[0]!.name, name).to.equal(file);
      }
    });

    it('sends a file with all that it imports, and no import twice', async () => {
      const [answer, again, tenant] = await ask(
        symbol('memory.v1.MemoryService'),
        { $case: 'fileByFilename', value: 'memory/v1/memory_service.proto' },
        { $case: 'fileByFilename', value: 'memory/v1/session.proto' },
      );
      const files = filesIn(answer!);
      const names = files.map(({ name }) => name);
      expect(names).to.have.length(new Set(names).size);
      for (const { imports } of files) expect(names).to.include.members(imports);
      expect(filesIn(again!).map(({ name }) => name)).to.deep.equal(['memory/v1/memory_service.proto']);
      expect(filesIn(tenant!).map(({ name }) => name)).to.deep.equal(['memory/v1/session.proto']);
    });

    it('says what it does not find, and goes on', async () => {
      const answers = await ask(
        symbol('memory.v1.Nothing'),
        { $case: 'fileByFilename', value: '../../package.json' },
        {
          $case: 'fileContainingExtension',
          value: { containingType: 'google.protobuf.FieldOptions', extensionNumber: 1 },
        },
        { $case: 'allExtensionNumbersOfType', value: 'google.protobuf.FieldOptions' },
        symbol('memory.v1.Session'),
      );
      expect(
        answers.slice(0, 4).map((answer) => answer.$case === 'errorResponse' && answer.value.errorCode),
      ).to.deep.equal([status.NOT_FOUND, status.NOT_FOUND, status.NOT_FOUND, status.NOT_FOUND]);
      expect(filesIn(answers[4]!)[0]!.name).to.equal('memory/v1/session.proto');
    });
  });
}
