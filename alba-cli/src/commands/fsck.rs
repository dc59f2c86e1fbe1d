//! The checker over the whole cluster.

use alba_core::ids::NamespaceName;
use alba_maintenance::Backend;
use alba_maintenance::fsck::{self, Report};
use clap::Args;
use serde_json::{Value, json};

use super::backend::shown;
use crate::answer::Answer;
use crate::error::CliError;
use crate::names;
use crate::session::Session;
use crate::table::table;

/// Compare what OSDs hold with what objects need: fragments that are missing, and fragments that nothing would ever delete
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  alba fsck\n  alba fsck photos --to-json\n\nReads only names of fragments, and changes nothing; \
                        clients and agents may go on. Fragments that wait to be deleted, and those of unfinished\nuploads, \
                        are counted and no fault. Exit code: 0 whole, 1 not."
)]
pub(crate) struct Fsck {
    /// Only these namespaces
    #[arg(value_parser = names::namespace())]
    namespaces: Vec<NamespaceName>,
}

fn as_json(report: &Report) -> Value {
    let differences = report.differences.iter().map(|difference| {
        json!({
            "namespace": shown(&difference.namespace),
            "osd": difference.osd.get(),
            "object_id": difference.address.object_id.to_string(),
            "chunk": difference.address.chunk.0,
            "fragment": difference.address.fragment.0,
            "version": difference.address.version.0,
            "wrong": difference.wrong.to_string(),
        })
    });
    let strangers =
        report.strangers.iter().map(|(osd, id)| json!({ "osd": osd.get(), "namespace_id": id.get() }));
    json!({
        "whole": report.is_whole(),
        "objects": report.totals.objects,
        "fragments_named": report.totals.named,
        "fragments_held": report.totals.held,
        "fragments_tagged": report.totals.tagged,
        "fragments_queued": report.totals.queued,
        "lone_tags": report.totals.lone_tags,
        "differences": report.count,
        "list": differences.collect::<Vec<_>>(),
        "unknown_namespaces": strangers.collect::<Vec<_>>(),
        "not_looked_at": report.unknown,
    })
}

fn as_text(report: &Report) -> String {
    let totals = &report.totals;
    let mut text = format!(
        "{} objects; {} fragments named, {} held, {} of unfinished uploads, {} wait to be deleted\n",
        totals.objects, totals.named, totals.held, totals.tagged, totals.queued
    );
    let rows = report.differences.iter().map(|difference| {
        let address = &difference.address;
        vec![
            shown(&difference.namespace),
            difference.osd.to_string(),
            address.object_id.to_string(),
            format!("{}.{}", address.chunk.0, address.fragment.0),
            address.version.0.to_string(),
            difference.wrong.to_string(),
        ]
    });
    if report.count > 0 {
        text.push_str(&table(
            &["NAMESPACE", ">OSD", "OBJECT", ">FRAGMENT", ">VERSION", "WRONG"],
            rows.collect(),
        ));
        text.push_str(&format!("{} differences\n", report.count));
    }
    for (osd, namespace) in &report.strangers {
        text.push_str(&format!("OSD {osd} holds something of namespace {namespace}, which does not exist\n"));
    }
    for unknown in &report.unknown {
        text.push_str(&format!("not looked at: {unknown}\n"));
    }
    text.push_str(if report.is_whole() { "whole" } else { "NOT whole" });
    text
}

impl Fsck {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let backend = Backend::new(session.env.clone(), session.client().await?);
        let wanted = |name: &NamespaceName| self.namespaces.is_empty() || self.namespaces.contains(name);
        let report = fsck::check(&backend, |record| wanted(&record.name)).await?;
        let mut answer = Answer::new(as_json(&report), as_text(&report))?;
        answer.exit = u8::from(!report.is_whole());
        Ok(answer)
    }
}
