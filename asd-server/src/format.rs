//! `asd-server format`: makes an empty directory the data directory of one ASD, for ever.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use alba_core::env::real;
use alba_core::ids::{LongId, Place};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::command::{self, Report};
use crate::home::Home;
use crate::prepare::{self, Preparation};

#[derive(Debug, Parser)]
#[command(
    name = "asd-server format",
    about = "Makes an empty directory the data directory of one ASD",
    after_help = "Example:\n  asd-server format --data-dir /mnt/disk1/asd --place rack-1/node-1 --prepare all"
)]
struct Arguments {
    /// The directory: new, or empty
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the device stands: node, rack/node or zone/rack/node
    #[arg(long)]
    place: Place,
    /// Its globally unique name; random when not given
    #[arg(long, value_name = "ID")]
    long_id: Option<LongId>,
    /// Write so many bytes of segments ahead (or "all" of the disk): later writes go to blocks that exist, which is
    /// several times faster on most file systems
    #[arg(long, value_name = "BYTES")]
    prepare: Option<Preparation>,
    /// Size of the prepared segments in bytes; the daemon's asd.segment_bytes must be the same
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    segment_bytes: u64,
}

pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    command::run(args, format)
}

async fn format(arguments: Arguments) -> anyhow::Result<Report> {
    let env = real::env();
    let home =
        Home::format(&arguments.data_dir, arguments.long_id.as_ref(), &arguments.place, env.rng.as_ref())?;
    let mut text = format!(
        "{} belongs to the ASD {} at {} now\n",
        arguments.data_dir.display(),
        home.identity.long_id,
        home.identity.place
    );
    if let Some(wanted) = arguments.prepare {
        let bar = ProgressBar::new(0);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        let written = prepare::prepare(&env, &home, wanted, arguments.segment_bytes, &|done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
        .await;
        bar.finish_and_clear();
        text += &format!("{} bytes prepared\n", written?);
    }
    Ok(Report::good(text))
}
