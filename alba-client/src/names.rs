//! Forgets what names of namespaces meant when the ABM says something else: after a change of namespaces the kept names are gone
//! over, beside all requests, so that these neither wait for it nor fail by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use alba_core::env::{Deadline, Env};
use alba_core::ids::NamespaceName;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceRecord};
use alba_core::wire::rpc::watch::Topic;
use tokio::sync::watch;

use crate::ClientError;
use crate::engine::Engine;
use crate::namespaces::{Namespace, unexpected};
use crate::watch::{AbmWatch, Changes, pause};

/// Pause before the names are gone over, half of it at least: backends with many clients create namespaces by the hundred.
const BEFORE: Duration = Duration::from_secs(2);

/// Pause after a check that failed, half of it at least.
const RETRY: Duration = Duration::from_secs(20);

/// So many names are asked for one by one; more are compared with the list of all namespaces, page by page.
const ONE_BY_ONE: usize = 50;

/// Pause after a check, for each question that it took: no client asks more often than 20 times a second for long.
const PER_QUESTION: Duration = Duration::from_millis(50);

/// Starts to follow the namespaces, for as long as `changes` lives.
pub(crate) fn follow(engine: &Arc<Engine>, changes: &AbmWatch) {
    let (env, changes) = (engine.env.clone(), changes.subscribe());
    let task = run(env, Arc::downgrade(engine), changes);
    // Ends with the watch.
    drop(engine.env.spawn.spawn("namespace-names", Box::pin(task)));
}

async fn run(env: Env, engine: Weak<Engine>, mut changes: watch::Receiver<Changes>) {
    let mut checked = changes.borrow_and_update().of(Topic::NAMESPACES);
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        while changes.borrow_and_update().of(Topic::NAMESPACES) != checked {
            pause(&env, BEFORE).await;
            let generation = changes.borrow_and_update().of(Topic::NAMESPACES);
            // Only requests keep the engine alive: this must not.
            let Some(engine) = engine.upgrade() else { return };
            let deadline = engine.deadline_in(engine.config.request_timeout());
            let done = check(&engine, deadline).await;
            drop(engine);
            match done {
                Ok(questions) => {
                    checked = generation;
                    pause(&env, PER_QUESTION.saturating_mul(questions.saturating_mul(2))).await;
                }
                Err(error) => {
                    // What is kept still works: a name that means something else is refused by its group.
                    tracing::debug!(%error, "names of namespaces are not checked");
                    pause(&env, RETRY).await;
                }
            }
        }
    }
}

/// Is the namespace still what the record says its name means?
fn holds(kept: &Namespace, record: Option<&NamespaceRecord>) -> bool {
    record
        .is_some_and(|record| record.id == kept.id && record.group == kept.group && record.state.is_usable())
}

/// Compares all that is kept; how many questions that took.
async fn check(engine: &Engine, deadline: Deadline) -> Result<u32, ClientError> {
    let mut questions = 0;
    let kept = engine.namespaces.all_kept();
    let (Some(first), Some(last)) = (kept.first(), kept.last()) else { return Ok(questions) };
    if kept.len() <= ONE_BY_ONE {
        for namespace in kept {
            let record = engine.namespaces.record(&namespace.name, deadline).await?;
            questions += 1;
            if !holds(&namespace, record.as_ref()) {
                engine.namespaces.forget_this(&namespace);
            }
        }
        return Ok(questions);
    }
    let end = last.name.clone();
    let mut range = RangeQuery { first: first.name.as_bytes().to_vec(), ..RangeQuery::all() };
    let mut wanted = kept.into_iter().peekable();
    loop {
        let AbmAnswer::Namespaces(page) =
            engine.ask_directory(AbmQuery::Namespaces(range.clone()), deadline).await?
        else {
            return Err(unexpected("Namespaces"));
        };
        questions += 1;
        // What the page covers: all names up to its last, or all there are.
        let upto = page.items.last().map(|record| record.name.clone()).filter(|_| page.has_more);
        let records: BTreeMap<NamespaceName, NamespaceRecord> =
            page.items.into_iter().map(|record| (record.name.clone(), record)).collect();
        while let Some(namespace) =
            wanted.next_if(|namespace| upto.as_ref().is_none_or(|upto| namespace.name <= *upto))
        {
            if !holds(&namespace, records.get(&namespace.name)) {
                engine.namespaces.forget_this(&namespace);
            }
        }
        match upto {
            Some(upto) if upto < end => range = range.after(upto.as_bytes()),
            _ => return Ok(questions),
        }
    }
}
