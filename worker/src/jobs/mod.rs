//! The job kinds. A new one is a file here, and a line in [`registry`].

mod backup;
mod bypass;
mod exec;
mod gate;
pub(crate) mod github;
pub(crate) mod http;
mod maintain;
mod migrate;
mod noop;
pub(crate) mod notify;
mod plan;
mod promoted;
mod reconcile;
mod restore;
mod retention;
mod rollback;
mod rotate;
mod sql;
mod tries;
mod verify;

use crate::registry::Registry;

/// All job kinds: the only list of them.
pub fn registry() -> Registry {
    Registry::default()
        .with::<backup::Backup>()
        .with::<bypass::Bypass>()
        .with::<exec::Exec>()
        .with::<gate::Gate>()
        .with::<github::Github>()
        .with::<http::Http>()
        .with::<maintain::Maintain>()
        .with::<migrate::Migrate>()
        .with::<noop::Noop>()
        .with::<notify::Notify>()
        .with::<plan::Plan>()
        .with::<reconcile::Reconcile>()
        .with::<promoted::Promoted>()
        .with::<restore::Restore>()
        .with::<retention::Retention>()
        .with::<rollback::Rollback>()
        .with::<rotate::Rotate>()
        .with::<verify::Verify>()
        .with::<sql::Sql>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use schemas::Names;
    use serde_json::Value;

    use super::registry;

    /// The page's part about a kind.
    fn part<'a>(page: &'a str, kind: &str) -> &'a str {
        let (_, rest) =
            page.split_once(&format!("\n## {kind}\n")).unwrap_or_else(|| panic!("docs/jobs.md has no {kind}"));
        rest.split("\n## ").next().unwrap()
    }

    fn names(object: &Value) -> BTreeSet<String> {
        object.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
    }

    /// The names of a kind's arguments: those of all its forms, where it has several.
    fn arguments(schema: &Value, whole: &Value) -> BTreeSet<String> {
        let mut found = names(&schema["properties"]);
        for forms in ["oneOf", "allOf", "anyOf"] {
            found.extend(schema[forms].as_array().into_iter().flatten().flat_map(|form| arguments(form, whole)));
        }
        if let Some(place) = schema["$ref"].as_str().and_then(|place| place.strip_prefix('#')) {
            found.extend(whole.pointer(place).map(|form| arguments(form, whole)).unwrap_or_default());
        }
        found
    }

    #[test]
    fn every_kind_is_in_the_reference_with_its_arguments_and_its_output() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/jobs.md")).unwrap();
        let catalog = registry().catalog(Names::default());
        for info in catalog.kinds() {
            let part = part(&page, info.kind);
            let table = part.split("| argument |").nth(1).unwrap().split("\n\n").next().unwrap();
            let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
            let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
            let schema = (info.schema)();
            assert_eq!(rows, arguments(&schema, &schema), "the arguments of {}", info.kind);
            let output = part.split("\nOutput: ").nth(1).unwrap().split("\n\n").next().unwrap();
            for name in names(&(info.output)()) {
                assert!(output.contains(&format!("`{name}`")), "the output of {}: {name}", info.kind);
            }
            assert!(part.contains("Twice is safe: "), "{}", info.kind);
        }
        assert_eq!(page.matches("\n## ").count(), catalog.kinds().count(), "a kind that is not there");
    }
}
