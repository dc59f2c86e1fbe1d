//! What benches over whole processes share: what is asked for, how figures are printed, what they are compared with.

pub mod limits;
pub mod open_loop;
pub mod rounds;
pub mod times;

use std::time::Duration;

/// What is asked for.
pub struct Bench {
    wanted: Vec<String>,
    /// How long one measurement takes.
    pub seconds: Duration,
}

impl Bench {
    /// Parts of names from the arguments, and `ALBA_BENCH_SECONDS`, 5 when it is not set.
    pub fn from_environment() -> Self {
        Self {
            // What cargo passes on begins with dashes.
            wanted: std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect(),
            seconds: Duration::from_secs(number("ALBA_BENCH_SECONDS", 5)),
        }
    }

    /// Is this measurement asked for?
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|part| name.contains(part))
    }
}

/// A number of the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// The program whose daemons are measured: the one that was built with the bench, or `ALBA_BENCH_PROGRAM`, to compare builds.
pub fn program(built: &str) -> String {
    std::env::var("ALBA_BENCH_PROGRAM").unwrap_or_else(|_| built.to_owned())
}

/// One line. A limit is what the same machine gave without us, in the same run.
pub fn print(name: &str, value: f64, unit: &str, limit: Option<(&str, f64)>) {
    match limit {
        Some((limit_name, limit)) => println!(
            r#"{{"name":"{name}","value":{value:.2},"unit":"{unit}","limit":"{limit_name}","limit_value":{limit:.2},"ratio":{:.3}}}"#,
            value / limit
        ),
        None => println!(r#"{{"name":"{name}","value":{value:.2},"unit":"{unit}"}}"#),
    }
}

/// CPU time of a process so far, in seconds.
pub fn cpu_seconds_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms; the name before them may hold anything but its closing bracket.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// CPU time of everything on this machine so far, the kernel's included, in seconds.
pub fn cpu_seconds_of_all() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    // proc(5): user, nice, system, idle, iowait, irq, softirq, in ticks of 10 ms.
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|at| ticks.get(at));
    busy.sum::<f64>() / 100.0
}
