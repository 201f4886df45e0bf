const STUB = '# Nobody has written this profile yet.\\n{}\\n';

/**
 * The CTEs that make a stub of a project's profile, if the session of the CTE `saved` was created and is the first of its
 * project.
 */
export const STUBBED = `project as (
    insert into project_profiles (tenant_id, env, project_id, version, create_time, update_time, created_by, updated_by)
    select $1, $2, saved.project_id, 1, saved.create_time, saved.create_time, $3, $3 from saved
    where saved.created and saved.project_id <> '' and not exists (
      select from project_profiles p where p.tenant_id = $1 and p.env = $2 and p.project_id = saved.project_id)
    on conflict (tenant_id, env, project_id) do nothing
    returning project_id, create_time
  ), stub as (
    insert into project_profile_versions (tenant_id, env, project_id, version, yaml, base_version, stub, create_time, created_by)
    select $1, $2, project_id, 1, E'${STUB}', 0, true, create_time, $3 from project
    returning 1
  )`;
