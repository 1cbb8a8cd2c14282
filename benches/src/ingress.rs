//! Deliveries: each verified and committed before it is answered.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use url::Url;

use crate::Servers;
use crate::door::{Door, Variant};
use crate::{load, pushes, server};

/// The arguments of `ingress`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    servers: Servers,
    /// What to compare; everything where nothing is named.
    variants: Vec<Variant>,
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// How long each series lasts.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Series of each; they take turns, and medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Lay so many earlier deliveries into a ledger first; several numbers, with commas: one ledger each, in turns.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    earlier: Vec<u64>,
}

/// A door, beside what it took earlier.
struct Compared {
    variant: Variant,
    earlier: u64,
    door: Door,
    figures: Figures,
}

/// One variant's figures, one for each round.
#[derive(Default)]
struct Figures {
    rate: Vec<f64>,
    peak_p99: Vec<f64>,
    half_p50: Vec<f64>,
    half_p99: Vec<f64>,
    door_cpu: Vec<f64>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let variants = if args.variants.is_empty() { Variant::value_variants().to_vec() } else { args.variants.clone() };
    let pushes = Arc::new(pushes::all()?);
    let mut doors = Vec::new();
    for variant in variants {
        let earlier: &[u64] = if variant == Variant::Raw { &[0] } else { &args.earlier };
        for &earlier in earlier {
            let door = Door::open(variant, &args.servers).await?;
            if earlier > 0 {
                lay(&door.database.url, earlier).await?;
            }
            doors.push(Compared { variant, earlier, door, figures: Figures::default() });
        }
    }
    for round in 1..=args.rounds {
        for compared in &mut doors {
            let Compared { variant, earlier, .. } = compared;
            eprintln!("{variant:?} beside {earlier} earlier ones, round {round} of {}", args.rounds);
            measure(&args, &compared.door, &pushes, &mut compared.figures).await?;
        }
    }
    print(&doors);
    for compared in doors {
        compared.door.close().await?;
    }
    Ok(())
}

/// As fast as it goes, then at half of that.
async fn measure(
    args: &Args,
    door: &Door,
    pushes: &Arc<Vec<pushes::Push>>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let lasting = Duration::from_secs(args.seconds);
    let target = door.target();
    load::send(&target, pushes, args.connections, Duration::from_millis(300), None).await?;
    door.database.settle().await?;
    let before = door.porter.cpu_micros()?;
    let peak = load::send(&target, pushes, args.connections, lasting, None).await?;
    let cpu = door.porter.cpu_micros()? - before;
    figures.rate.push(peak.rate);
    figures.peak_p99.push(peak.percentile(99));
    #[allow(clippy::cast_precision_loss)] // microseconds of seconds
    figures.door_cpu.push(cpu as f64 / peak.times.len().max(1) as f64);
    let half = load::send(&target, pushes, args.connections, lasting, Some(peak.rate / 2.0)).await?;
    figures.half_p50.push(half.percentile(50));
    figures.half_p99.push(half.percentile(99));
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

fn print(doors: &[Compared]) {
    let raw = doors.iter().find(|door| door.variant == Variant::Raw).map(|raw| median(&raw.figures.rate));
    println!(
        "| deliveries | earlier | per second | of raw | p99 ms at peak | p50 / p99 ms at half | server's CPU µs | rounds |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for Compared { variant, earlier, figures, .. } in doors {
        let rate = median(&figures.rate);
        let rounds: Vec<String> = figures.rate.iter().map(|rate| format!("{rate:.0}")).collect();
        println!(
            "| {variant:?} | {earlier} | {rate:.0} | {:.2} | {:.1} | {:.1} / {:.1} | {:.0} | {} |",
            raw.map_or(f64::NAN, |raw| rate / raw),
            median(&figures.peak_p99),
            median(&figures.half_p50),
            median(&figures.half_p99),
            median(&figures.door_cpu),
            rounds.join(" "),
        );
    }
}

/// Lays deliveries of the last week, without their bodies, which nothing reads, and leaves the server nothing to tidy up.
/// The events' ids begin with their time, as ours do, and none is old enough to be forgotten meanwhile; the delivery ids
/// and digests are random, as senders' are.
async fn lay(ledger: &Url, count: u64) -> anyhow::Result<()> {
    let laid = format!(
        "set search_path = nightporter;
         create temporary view earlier as
         select n, now() - interval '7 days' * (1 - n / {count}.0) as at from generate_series(1, {count}) n;
         insert into event (id, source, kind, delivery_id, time, data, standing, received_at, config_digest)
         select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
                'github', 'github.push', 'earlier-' || n, extract(epoch from at) * 1000000, '{{}}', 0,
                extract(epoch from at) * 1000000, ''
         from earlier;
         insert into delivery_key (source, delivery_id, event_id, expires_at)
         select 'github', gen_random_uuid()::text, gen_random_uuid(), 9000000000000000 from earlier;
         insert into delivery_digest (source, digest, event_id, seen_at, expires_at)
         select 'github', sha256(n::text::bytea), gen_random_uuid(), 1, 9000000000000000 from earlier"
    );
    server::execute(ledger, &laid).await?;
    server::execute(ledger, "vacuum analyze").await
}
