// Who may import whom: main → cli → server → features → rpc, db → wire, gen. A feature may use another's repository,
// never its service.
const FEATURES =
  'sessions|bundles|threads|turns|contexts|tokens|memories|search|projects|inputs|drafts|artifacts|usage|profiles|audit|quotas|tenants';

export default {
  forbidden: [
    { name: 'no-cycles', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'db-is-a-kernel',
      severity: 'error',
      from: { path: '^src/db/' },
      to: { path: '^src/', pathNot: '^src/(db|gen|wire)' },
    },
    {
      name: 'rpc-is-a-kernel',
      severity: 'error',
      from: { path: '^src/rpc/' },
      to: { path: '^src/', pathNot: '^src/(rpc|db|gen|wire|errors)' },
    },
    {
      name: 'features-stand-on-the-kernels',
      severity: 'error',
      from: { path: `^src/(${FEATURES})/` },
      to: { path: '^src/', pathNot: `^src/(rpc|db|gen|wire|snapshots|${FEATURES})/` },
    },
    {
      name: 'no-service-of-another-feature',
      severity: 'error',
      from: { path: `^src/(${FEATURES})/` },
      to: { path: `^src/(${FEATURES})/service`, pathNot: '^src/$1/' },
    },
    {
      name: 'gen-is-a-leaf',
      severity: 'error',
      from: { path: '^src/(gen|wire)/' },
      to: { path: '^src/', pathNot: '^src/(gen|wire)/' },
    },
    {
      name: 'snapshots-are-a-library',
      severity: 'error',
      from: { path: '^src/snapshots/' },
      to: { path: '^src/', pathNot: '^src/(snapshots|errors)' },
    },
    { name: 'nothing-imports-main', severity: 'error', from: {}, to: { path: '^src/main' } },
    {
      name: 'server-not-by-features',
      severity: 'error',
      from: { pathNot: '^src/(main|server|features|cli)' },
      to: { path: '^src/(server|features|cli)' },
    },
    {
      name: 'no-undeclared-packages',
      severity: 'error',
      from: { path: '^src/' },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown', 'unknown', 'undetermined'] },
    },
  ],
  options: {
    parser: 'swc',
    tsPreCompilationDeps: true,
    exclude: { path: '^node_modules' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'node', 'default'] },
    doNotFollow: { path: 'node_modules' },
  },
};
