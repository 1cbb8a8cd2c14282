//! Client spans of calls to the outside: one for each, named as OpenTelemetry's conventions name it. No span holds a
//! path, a query or a statement: any of them may hold a secret.

use tracing::{Span, info_span};

/// A call of an S3-compatible store.
pub(crate) fn s3(operation: &'static str, bucket: &str) -> Span {
    info_span!(
        "s3",
        otel.name = format!("S3/{operation}"),
        otel.kind = "client",
        rpc.system = "aws-api",
        rpc.service = "S3",
        rpc.method = operation,
        aws.s3.bucket = bucket,
    )
}

/// A call of AWS's query protocol.
pub(crate) fn aws(service: &'static str, operation: &'static str) -> Span {
    info_span!(
        "aws",
        otel.name = format!("{service}/{operation}"),
        otel.kind = "client",
        rpc.system = "aws-api",
        rpc.service = service,
        rpc.method = operation,
    )
}

/// A program that is run: `pg_dump`, `pg_restore`.
pub(crate) fn program(name: &'static str) -> Span {
    info_span!("program", otel.name = name, otel.kind = "client", process.executable.name = name)
}

/// A program that the user has configured, by the name that it has there.
pub(crate) fn exec(name: &str) -> Span {
    info_span!("program", otel.name = "exec", otel.kind = "client", process.executable.name = name)
}

/// A request to GitHub's API.
pub(crate) fn github(method: &str, host: Option<&str>) -> Span {
    info_span!("github", otel.name = method, otel.kind = "client", http.request.method = method, server.address = host)
}

/// A request to Vercel's API.
pub(crate) fn vercel(method: &str, host: Option<&str>) -> Span {
    info_span!("vercel", otel.name = method, otel.kind = "client", http.request.method = method, server.address = host)
}

/// A request to an address of the user's.
pub(crate) fn http(method: &'static str, host: Option<&str>) -> Span {
    info_span!("http", otel.name = method, otel.kind = "client", http.request.method = method, server.address = host)
}

/// Work in a user's database: `doing` is one of our own words.
pub(crate) fn database(system: &'static str, doing: &'static str) -> Span {
    info_span!(
        "database",
        otel.name = format!("{doing} {system}"),
        otel.kind = "client",
        db.system.name = system,
        db.operation.name = doing,
    )
}
