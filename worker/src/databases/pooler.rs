//! Poolers: addresses through which a dump's snapshot and a migration's lock don't hold.

use url::Url;

/// Why this address is a pooler's, and what to use instead; none where it does not look like one.
///
/// A pooler lends a session for one transaction: the session's lock and settings stay with whoever gets it next.
pub fn pooled(url: &Url) -> Option<String> {
    let host = url.host_str().unwrap_or_default();
    let first_label = host.split('.').next().unwrap_or_default();
    if first_label.ends_with("-pooler") {
        let direct = host.replacen("-pooler.", ".", 1);
        return Some(format!("`{host}` is a pooler; use the direct host `{direct}`"));
    }
    if host.ends_with("pooler.supabase.com") && url.port() == Some(6543) {
        return Some(format!(
            "`{host}:6543` is a pooler in transaction mode; use the direct host `db.<project>.supabase.co:5432`"
        ));
    }
    if host.ends_with("pooler.supabase.com") {
        return Some(format!(
            "`{host}` is a pooler; use the direct host `db.<project>.supabase.co:5432` (IPv6, or the IPv4 add-on)"
        ));
    }
    if url.port() == Some(6543) {
        return Some("port 6543 is a pooler's; use the database's own port, usually 5432".to_owned());
    }
    let says_so = url.query_pairs().any(|(key, value)| key == "pgbouncer" && value == "true");
    says_so.then(|| {
        "its `pgbouncer=true` says that it goes through a pooler; use the direct address, without that parameter"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolers_are_known_by_host_port_and_parameter_and_the_way_out_is_named() {
        let said = |url: &str| pooled(&Url::parse(url).unwrap());
        let neon = said("postgres://u:hunter2@ep-cool-1-pooler.eu-central-1.aws.neon.tech/db").unwrap();
        assert!(neon.contains("`ep-cool-1.eu-central-1.aws.neon.tech`") && !neon.contains("hunter2"), "{neon}");
        assert!(said("postgres://u@aws-0-eu.pooler.supabase.com:6543/postgres").unwrap().contains("db.<project>"));
        assert!(said("postgres://u@aws-0-eu.pooler.supabase.com:5432/postgres").is_some());
        assert!(said("postgres://u@db.example.com:6543/x").unwrap().contains("5432"));
        assert!(said("postgres://u@db.example.com/x?pgbouncer=true").is_some());
    }

    #[test]
    fn direct_addresses_pass() {
        for direct in [
            "postgres://u@ep-cool-1.eu-central-1.aws.neon.tech/db?sslmode=require",
            "postgres://u@db.abc.supabase.co:5432/postgres",
            "postgres://u@localhost:5433/car-pooler",
            "postgres://u@db.example.com/x?pgbouncer=false",
        ] {
            assert_eq!(pooled(&Url::parse(direct).unwrap()), None, "{direct}");
        }
    }
}
