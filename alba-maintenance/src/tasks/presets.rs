//! Checks that the newest version of each preset has come to the groups of its namespaces. The ABM sends it; this tells when
//! it does not arrive.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::failpoint::{Step, reach};
use alba_core::ids::PresetName;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceState};
use async_trait::async_trait;

use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, in_lane, lanes};

/// How long a new version may take to arrive: what is late after it is looked at once more.
const PATIENCE: Duration = Duration::from_secs(10);

/// The task `presets`.
pub struct Presets;

async fn versions(backend: &Backend) -> Result<BTreeMap<PresetName, u32>, TaskError> {
    let mut all = BTreeMap::new();
    let mut range = RangeQuery::all();
    loop {
        let AbmAnswer::Presets(page) = backend.ask_abm(AbmQuery::Presets(range.clone())).await? else {
            return Err(TaskError::Mismatch("Presets"));
        };
        let last = page.items.last().map(|record| record.name.clone());
        all.extend(page.items.into_iter().map(|record| (record.name, record.version)));
        match last {
            Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
            _ => return Ok(all),
        }
    }
}

#[async_trait]
impl Task for Presets {
    fn name(&self) -> &'static str {
        "presets"
    }

    fn about(&self) -> &'static str {
        "reports namespaces whose group has not got the newest version of their preset"
    }

    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(3600))
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        Ok(lanes())
    }

    async fn run(&self, part: &str, run: &Run) -> Result<(), TaskError> {
        // Before the groups are asked: what changes meanwhile is not late.
        let versions = versions(&run.backend).await?;
        let mut namespaces = run.backend.each_namespace();
        while let Some(namespace) = namespaces.next().await? {
            if !in_lane(part, namespace.id.get()) || namespace.state != NamespaceState::Active {
                continue;
            }
            let Some(version) = versions.get(&namespace.preset) else { continue };
            run.pace(1, 0).await;
            let is_late = async || match run.backend.namespace_info(&namespace).await {
                Ok(info) => Ok(info.preset_version < *version),
                Err(error) => Err(error),
            };
            let late = match is_late().await {
                Ok(true) => {
                    run.sleep(PATIENCE).await;
                    is_late().await
                }
                answer => answer,
            };
            reach(Step::PresetsAsked);
            match late {
                Ok(false) => run.progress.did(1, 0),
                Ok(true) => run.progress.problem(format!(
                    "namespace {} has not got version {version} of preset {}",
                    namespace.name, namespace.preset
                )),
                Err(error) => run.progress.problem(format!("namespace {}: {error}", namespace.name)),
            }
        }
        Ok(())
    }
}
