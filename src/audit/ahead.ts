// A dump that was restored into another cluster: its chains go up to transactions that this database has yet to count to.

const HORIZON = 'pg_snapshot_xmin(pg_current_snapshot())';

/** Over all tenants, as the role that sees where work is due: a chain whose newest block is ahead of the database, if there is one. */
export const AHEAD = `
  select t.tenant_id as tenant, w.env, b.upto::text as upto, ${HORIZON}::text as horizon
  from tenants t cross join unnest(t.envs || ''::text) as w (env) cross join lateral (
    select b.upto from audit_blocks b where b.tenant_id = t.tenant_id and b.env = w.env order by b.block_no desc limit 1
  ) b
  where b.upto > ${HORIZON}
  limit 1`;

export const aheadText = (of: { tenant: string; env: string; upto: string; horizon: string }): string =>
  `the audit trail of ${of.tenant}/${of.env} goes up to transaction ${of.upto}, this database only to ${of.horizon}: raise its next transaction id above that (pg_resetwal), or move the tenant with memoryd export and import`;
