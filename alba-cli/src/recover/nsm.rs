//! Recovery of the namespaces of a lost NSM group.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alba_client::Client;
use alba_core::encryption::{ClusterKey, FragmentKey, KeyError};
use alba_core::env::osd::Osd;
use alba_core::env::{Env, Moment, blocking, files};
use alba_core::ids::{GcEpoch, GroupId, LongId, NodeId, ObjectId, OsdId};
use alba_core::kv::{FjallKv, Kv};
use alba_core::preset::{FragmentEncryption, Preset};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmQuery, NamespaceRecord, NamespaceState, OsdFilter, OsdState,
};
use alba_core::wire::rpc::nsm::{
    Lifecycle, NamespaceDetails, NsmAnswer, NsmCommand, NsmOutcome, NsmQuery, Recovered, RecoveredObject,
};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::judge::{Before, Evidence, Reach, Verdict, judge};
use super::old::Old;
use super::place::{Counts, Place, Progress};
use super::scan::{Asked, Merge, Seen, Tags, local, read_infos};
use crate::answer::{Answer, note};
use crate::commands::backend::{Backend, mismatch, shown};
use crate::error::CliError;
use crate::progress;
use crate::ranges::Pager;
use crate::session::Session;
use crate::table::table;

/// Objects that are dealt with together.
const BATCH: usize = 200;

/// Fragments after which a batch ends early: each takes a few KiB at most until it is judged.
const BATCH_FRAGMENTS: usize = 4000;

/// Bytes of manifests per command, as estimated; the limit is 1 MiB.
const COMMAND: usize = 256 << 10;

/// How long the metadata servers may take to tell the new group of its namespaces.
const HAND_OVER: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Cache of the store for gc tags, in bytes.
const CACHE: u64 = 16 << 20;

/// Exit code when it worked and an operator has still something to decide or to do.
const LEFT: u8 = 3;

/// What is to be recovered, from what.
pub(crate) struct Task {
    /// The lost group.
    pub(crate) from: GroupId,
    /// Which group gets its namespaces.
    pub(crate) to: GroupId,
    /// A backup of the lost group.
    pub(crate) backup: Option<PathBuf>,
    /// Where progress and report are kept.
    pub(crate) work_dir: PathBuf,
    /// OSDs that are known not to come back.
    pub(crate) without: Vec<LongId>,
}

/// A recovery at work.
struct Recovery<'s> {
    session: &'s Session,
    client: Client,
    to: GroupId,
    place: Place,
    old: Option<Arc<alba_metadata::backup::OldGroup>>,
    osds: Osds,
    bar: ProgressBar,
}

/// The OSDs of the backend, or those of a namespace.
#[derive(Default)]
struct Osds {
    asked: Vec<Asked>,
    reach: Reach,
    /// Long ids of those that do not answer.
    absent: BTreeMap<OsdId, LongId>,
    /// Those of them that may come back.
    awaited: BTreeSet<OsdId>,
}

impl Osds {
    /// Those among these.
    fn among(&self, ids: &BTreeSet<OsdId>) -> Self {
        let some = |all: &BTreeSet<OsdId>| all.intersection(ids).copied().collect();
        Self {
            asked: self.asked.iter().filter(|asked| ids.contains(&asked.id)).cloned().collect(),
            reach: Reach { scanned: some(&self.reach.scanned), absent: some(&self.reach.absent) },
            absent: self
                .absent
                .iter()
                .filter(|(id, _)| ids.contains(id))
                .map(|(id, l)| (*id, l.clone()))
                .collect(),
            awaited: some(&self.awaited),
        }
    }
}

/// Recovers, as far as it goes now.
pub(crate) async fn recover(session: &Session, task: Task) -> Result<Answer, CliError> {
    let client = session.client().await?;
    check_groups(session, &client, &task).await?;
    let about = match &task.backup {
        Some(backup) => format!("{} to {} with backup {}", task.from, task.to, absolute(backup)?.display()),
        None => format!("{} to {} without a backup", task.from, task.to),
    };
    let place = Place::open(&task.work_dir, &about)?;
    let old = match &task.backup {
        Some(backup) => Some(open_backup(&session.env, backup, place.path("backup"), &task.from).await?),
        None => None,
    };
    let namespaces = hand_over(session, &client, &task).await?;
    let osds = find_osds(session, &client, &task.without).await?;
    let bar = progress::spinner();
    let mut recovery = Recovery { session, client, to: task.to.clone(), place, old, osds, bar };
    let mut results = Vec::new();
    for namespace in &namespaces.to_recover {
        results.push((namespace.clone(), recovery.namespace(namespace).await?));
    }
    recovery.bar.finish_and_clear();
    answer(&task, &namespaces, &recovery.osds, &results)
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| CliError::file("find", path, &error))
}

async fn check_groups(session: &Session, client: &Client, task: &Task) -> Result<(), CliError> {
    let groups = Backend::new(client, session.deadline()).groups().await?;
    let find = |id: &GroupId| {
        let found = groups.iter().find(|group| group.id == *id);
        found.ok_or_else(|| {
            CliError::usage(format!("there is no metadata group {id}; see alba list-nsm-hosts"))
        })
    };
    if !find(&task.from)?.lost {
        return Err(CliError::failure(format!(
            "group {from} is not marked lost. If it is lost for good, give it up first: alba update-nsm-host {from} --lost",
            from = task.from
        )));
    }
    if find(&task.to)?.lost {
        return Err(CliError::usage(format!("group {} is lost, too", task.to)));
    }
    Ok(())
}

async fn open_backup(
    env: &Env,
    backup: &Path,
    scratch: PathBuf,
    of: &GroupId,
) -> Result<Arc<alba_metadata::backup::OldGroup>, CliError> {
    let path = backup.to_owned();
    let open = move || alba_metadata::backup::OldGroup::open(&path, scratch);
    let old = blocking(env.spawn.as_ref(), open).await?;
    let old = old.map_err(|error| CliError::failure(format!("{}: {error}", backup.display())))?;
    let group = &old.description().group;
    if group != of {
        return Err(CliError::usage(format!(
            "{} is a backup of group {group}, not of {of}",
            backup.display()
        )));
    }
    Ok(Arc::new(old))
}

/// What there is to recover.
#[derive(Default)]
struct Namespaces {
    to_recover: Vec<NamespaceRecord>,
    /// Those that stay where they are for now, and why.
    not_now: Vec<(NamespaceRecord, &'static str)>,
}

/// Gives the namespaces of the lost group to the other one. Repeats what an earlier run has done.
async fn hand_over(session: &Session, client: &Client, task: &Task) -> Result<Namespaces, CliError> {
    let backend = || Backend::new(client, session.deadline());
    let mut found = Namespaces::default();
    for record in backend().namespaces(Pager::all()).await? {
        if record.group == task.from {
            match &record.state {
                NamespaceState::Active | NamespaceState::Recovering | NamespaceState::Creating => {
                    let (name, group) = (record.name.clone(), task.to.clone());
                    backend().command(AbmCommand::RecoverNamespace { name, group }).await?;
                }
                NamespaceState::Trashed { .. } => {
                    // Its group would have to know of the trash; nothing is lost by having it back.
                    note(&format!("namespace {} was in the trash; it comes out of it", shown(&record.name)));
                    let (name, group) = (record.name.clone(), task.to.clone());
                    backend().command(AbmCommand::UndeleteNamespace { name: name.clone() }).await?;
                    backend().command(AbmCommand::RecoverNamespace { name, group }).await?;
                }
                NamespaceState::Moving { .. } => {
                    found.not_now.push((record, "its move to another group has to end first"));
                    continue;
                }
                // It goes without the group.
                NamespaceState::Removing => continue,
            }
        }
        let record = backend().namespace(&record.name).await?;
        if record.group == task.to && record.state == NamespaceState::Recovering {
            wait_until_known(session, client, &record).await?;
            found.to_recover.push(record);
        }
    }
    Ok(found)
}

/// Waits until the new group has heard of a namespace.
async fn wait_until_known(
    session: &Session,
    client: &Client,
    record: &NamespaceRecord,
) -> Result<(), CliError> {
    let clock = session.env.clock.as_ref();
    let until = session.env.deadline_in(HAND_OVER);
    loop {
        let error = match details(session, client, record).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if until.left(clock) <= PAUSE {
            return Err(error.while_doing(&format!(
                "group {} has not heard of namespace {} yet (alba list-nsm-host-messages {0} shows why)",
                record.group,
                shown(&record.name)
            )));
        }
        clock.sleep_until(clock.now().plus(PAUSE)).await;
    }
}

async fn details(
    session: &Session,
    client: &Client,
    record: &NamespaceRecord,
) -> Result<NamespaceDetails, CliError> {
    match Backend::new(client, session.deadline()).nsm(record, NsmQuery::Details(record.id)).await? {
        NsmAnswer::Details(details) => Ok(*details),
        _ => Err(mismatch("Details")),
    }
}

/// Finds out which OSDs answer.
async fn find_osds(session: &Session, client: &Client, without: &[LongId]) -> Result<Osds, CliError> {
    let backend = Backend::new(client, session.deadline());
    let records = backend.osds(OsdFilter::Claimed, Pager::all()).await?;
    if let Some(unknown) = without.iter().find(|id| !records.iter().any(|osd| osd.info.long_id == **id)) {
        return Err(CliError::usage(format!("there is no claimed OSD {unknown}; see alba list-osds")));
    }
    let mut osds = Osds::default();
    let mut asking = Vec::new();
    for record in records {
        // One that is being purged is gone for good.
        let Some(id) = record.osd_id.filter(|_| record.state != OsdState::Purging) else { continue };
        let long_id = record.info.long_id;
        if without.contains(&long_id) {
            osds.absent.insert(id, long_id);
            continue;
        }
        let osd: Arc<dyn Osd> = client.osd(id, session.deadline()).await?;
        asking.push(async move {
            let asked = Asked { id, osd };
            let answers = asked.answers(&session.env).await;
            (asked, long_id, answers)
        });
    }
    for (asked, long_id, answers) in futures_util::future::join_all(asking).await {
        match answers {
            Ok(()) => {
                osds.reach.scanned.insert(asked.id);
                osds.asked.push(asked);
            }
            Err(error) => {
                note(&format!("OSD {} ({long_id}) does not answer: {error}", asked.id));
                osds.awaited.insert(asked.id);
                osds.absent.insert(asked.id, long_id);
            }
        }
    }
    osds.reach.absent = osds.absent.keys().copied().collect();
    if osds.asked.is_empty() {
        return Err(CliError::failure("no OSD answers: there is nothing to recover from"));
    }
    Ok(osds)
}

/// How a namespace ended.
struct Outcome {
    counts: Counts,
    /// Objects that wait for a decision, of this run and earlier ones.
    findings: u64,
    finished: bool,
}

/// What a namespace's objects are judged by.
struct Rules {
    preset: Preset,
    /// Of the preset, when it encrypts.
    key: Option<FragmentKey>,
    nodes: BTreeMap<OsdId, NodeId>,
}

impl Recovery<'_> {
    fn backend(&self) -> Backend<'_> {
        Backend::new(&self.client, self.session.deadline())
    }

    async fn rules(&self, record: &NamespaceRecord) -> Result<Rules, CliError> {
        let NsmAnswer::Namespace(info) = self.backend().nsm(record, NsmQuery::Namespace(record.id)).await?
        else {
            return Err(mismatch("Namespace"));
        };
        let details = details(self.session, &self.client, record).await?;
        let nodes = details.osds.into_iter().map(|(id, info, _)| (id, info.place.node().clone())).collect();
        let key = self
            .key_of(&info.preset)
            .map_err(|error| error.while_doing(&format!("the key of namespace {}", shown(&record.name))))?;
        Ok(Rules { preset: info.preset, key, nodes })
    }

    /// What lies beside encrypted fragments is encrypted, too.
    fn key_of(&self, preset: &Preset) -> Result<Option<FragmentKey>, CliError> {
        let FragmentEncryption::Aes256Ctr { key, .. } = &preset.fragment_encryption else { return Ok(None) };
        let failed = |error: KeyError| CliError::failure(error.to_string());
        let Some(path) = &self.client.config().cluster_key else {
            return Err(failed(KeyError::NoClusterKey));
        };
        let cluster = ClusterKey::read(path).map_err(failed)?;
        cluster.unwrap(key).map(Some).map_err(failed)
    }

    /// The OSDs that have ever been told of a namespace and have not dropped it.
    async fn osds_of(&self, record: &NamespaceRecord) -> Result<Osds, CliError> {
        let AbmAnswer::OsdIds(ids) = self.backend().ask(AbmQuery::NamespaceOsds(record.id)).await? else {
            return Err(mismatch("NamespaceOsds"));
        };
        Ok(self.osds.among(&ids.into_iter().collect()))
    }

    /// Recovers one namespace.
    async fn namespace(&mut self, record: &NamespaceRecord) -> Result<Outcome, CliError> {
        let osds = self.osds_of(record).await?;
        let absent: BTreeSet<String> = osds.absent.values().map(|id| id.as_str().to_owned()).collect();
        let mut progress = self.place.progress(record.id.get());
        if progress.absent != absent {
            // More or less can be seen now. What was restored is known to the group, and stays.
            progress = Progress { absent, epoch: progress.epoch, ..Progress::default() };
            self.place.begin_again(record.id.get(), &shown(&record.name))?;
        }
        let before = details(self.session, &self.client, record).await?.lifecycle;
        if before == Lifecycle::Recovering && !progress.scanned {
            note(&format!("namespace {}: reading {} OSDs", shown(&record.name), osds.asked.len()));
            self.scan(record, &osds, &mut progress).await?;
        }
        let findings = details(self.session, &self.client, record).await?.findings;
        let whole = osds.awaited.is_empty() && progress.scanned;
        // It may be that only the ABM has not heard of the end.
        if findings == 0 && (whole || before == Lifecycle::Active) {
            self.finish(record, &progress).await?;
            progress.finished = true;
            self.place.advance(record.id.get(), &progress, &[])?;
        }
        Ok(Outcome { counts: progress.counts.clone(), findings, finished: progress.finished })
    }

    async fn finish(&self, record: &NamespaceRecord, progress: &Progress) -> Result<(), CliError> {
        let epoch = progress.epoch.saturating_add(1);
        let epoch = GcEpoch::new(epoch).map_err(|error| CliError::failure(error.to_string()))?;
        let command = NsmCommand::FinishRecovery { namespace: record.id, epoch };
        self.tell(command).await?;
        // A crash here leaves a namespace that is served and that the ABM calls recovering: the next run goes on.
        let name = record.name.clone();
        self.backend().command(AbmCommand::FinishRecovery { name }).await?;
        Ok(())
    }

    async fn tell(&self, command: NsmCommand) -> Result<NsmOutcome, CliError> {
        let deadline = self.session.deadline();
        Ok(self.client.namespace_store().command(&self.to, command, deadline).await?)
    }

    async fn scan(
        &mut self,
        record: &NamespaceRecord,
        osds: &Osds,
        progress: &mut Progress,
    ) -> Result<(), CliError> {
        let rules = self.rules(record).await?;
        let env = &self.session.env;
        let tags_at = self.place.path("tags");
        let kv = blocking(env.spawn.as_ref(), move || fresh_store(&tags_at)).await??;
        let tags = Tags::read(env, kv, &osds.asked, record.id).await?;
        let mut old = Old::of(env, self.old.clone(), record.id, progress.position()).await?;
        if let Some(why) = old.missing() {
            note(&format!("namespace {}: {why}", shown(&record.name)));
        }
        let epochs = [tags.newest.map(GcEpoch::get), old.newest_epoch().map(GcEpoch::get)];
        progress.epoch = epochs.into_iter().flatten().fold(progress.epoch, u64::max);
        let mut merge = Merge::new(&osds.asked, record.id, progress.position().as_ref());
        let mut ahead: Option<Seen> = None;
        let since = env.clock.now();
        let first = progress.counts.seen;
        loop {
            let batch = gather(env, &mut merge, &mut old, &mut ahead).await?;
            let Some(last) = batch.last().map(|(seen, _, _)| seen.id) else { break };
            let done = self.batch(record, osds, &rules, &tags, batch).await?;
            add(&mut progress.counts, &done.counts);
            progress.after = Some(hex::encode(last.as_bytes()));
            self.place.advance(record.id.get(), progress, &done.lines)?;
            self.show(record, &progress.counts, progress.counts.seen - first, since, &last);
        }
        progress.scanned = true;
        self.place.advance(record.id.get(), progress, &[])
    }

    /// Judges some objects and gives them to the group.
    async fn batch(
        &self,
        record: &NamespaceRecord,
        osds: &Osds,
        rules: &Rules,
        tags: &Tags,
        batch: Vec<(Seen, bool, Before)>,
    ) -> Result<Done, CliError> {
        let seen: Vec<Seen> = batch.iter().map(|(seen, _, _)| seen.clone()).collect();
        let infos =
            read_infos(&self.session.env, &osds.asked, record.id, rules.key.as_ref(), tags, &seen).await?;
        let mut done = Done::new(record);
        let mut objects: Vec<(RecoveredObject, &'static str)> = Vec::new();
        for ((seen, noted, before), found) in batch.into_iter().zip(infos) {
            done.counts.seen += 1;
            if let Before::Live(manifest) = &before
                && manifest.chunks.is_empty()
            {
                done.counts.inline += 1;
                let why = "its bytes were kept by the lost group; the backup has them";
                done.line(&seen.id, manifest.name.as_bytes(), "inline", why);
                continue;
            }
            let evidence = Evidence { id: seen.id, found, before, noted };
            let verdict = judge(&evidence, &osds.reach, &rules.preset, |osd| rules.nodes.get(&osd));
            let name = match &evidence.before {
                Before::Live(manifest) => manifest.name.as_bytes(),
                _ => evidence.found.first().map(|found| found.info.name.as_bytes()).unwrap_or_default(),
            };
            match verdict {
                Verdict::Restore(manifest) => {
                    objects.push((RecoveredObject { manifest: *manifest, possibly_deleted: false }, ""));
                }
                Verdict::Apart(manifest, doubt) => {
                    let object = RecoveredObject { manifest: *manifest, possibly_deleted: true };
                    objects.push((object, doubt.text()));
                }
                Verdict::Deleted => done.counts.deleted += 1,
                Verdict::Gone => {
                    done.counts.gone += 1;
                    let why = "the backup has it, and no OSD has anything of it: deleted since, or lost";
                    done.line(&seen.id, name, "gone", why);
                }
                Verdict::Incomplete(error) => {
                    done.counts.incomplete += 1;
                    done.line(&seen.id, name, "incomplete", &error.to_string());
                }
            }
        }
        let mut objects = objects.into_iter().peekable();
        while objects.peek().is_some() {
            let (mut part, mut bytes) = (Vec::new(), 0_usize);
            // The first always fits: a manifest is at most 1 MiB with all that is around it.
            while let Some(next) =
                objects.next_if(|(object, _)| bytes == 0 || bytes + weight(object) <= COMMAND)
            {
                bytes += weight(&next.0);
                part.push(next);
            }
            let recovered = part.iter().map(|(object, _)| object.clone()).collect();
            let command = NsmCommand::RecoverObjects { namespace: record.id, objects: recovered };
            let NsmOutcome::Recovered(results) = self.tell(command).await? else {
                return Err(mismatch("RecoverObjects"));
            };
            for ((object, why), result) in part.into_iter().zip(results) {
                done.result(&object, why, result);
            }
        }
        Ok(done)
    }

    fn show(&self, record: &NamespaceRecord, counts: &Counts, now: u64, since: Moment, last: &ObjectId) {
        let seconds = self.session.env.clock.now().since(since).as_secs().max(1);
        // Ids are evenly spread: the first byte says how far it is.
        let percent = u64::from(last.as_bytes()[0]) * 100 / 256;
        self.bar.set_message(format!(
            "namespace {}: {percent} %, {} objects, {} restored, {} apart, {} incomplete, {} objects/s",
            shown(&record.name),
            counts.seen,
            counts.restored,
            counts.apart,
            counts.incomplete,
            now / seconds
        ));
    }
}

/// Bytes of an object in a command, as estimated from above.
fn weight(object: &RecoveredObject) -> usize {
    object.manifest.fragments().count().saturating_mul(64).saturating_add(2 << 10)
}

fn fresh_store(path: &Path) -> Result<Arc<dyn Kv>, CliError> {
    if path.exists() {
        files::remove_dir_all(path).map_err(|error| CliError::file("empty", path, &error))?;
    }
    files::create_dir_all(path).map_err(|error| CliError::file("create", path, &error))?;
    Ok(Arc::new(FjallKv::open(path, CACHE).map_err(local)?))
}

/// The next objects, of OSDs and of the backup, each with whether there is a note and what the backup knows. Empty at the end.
async fn gather(
    env: &Env,
    merge: &mut Merge,
    old: &mut Old,
    ahead: &mut Option<Seen>,
) -> Result<Vec<(Seen, bool, Before)>, CliError> {
    let mut batch = Vec::new();
    let mut fragments = 0;
    while batch.len() < BATCH && fragments < BATCH_FRAGMENTS {
        if ahead.is_none() {
            *ahead = merge.next(env).await?;
        }
        let known = old.head(env).await?;
        let seen = match (ahead.take(), known) {
            (Some(seen), Some(known)) if known < seen.id => {
                *ahead = Some(seen);
                Seen { id: known, fragments: Vec::new() }
            }
            (Some(seen), _) => seen,
            (None, Some(known)) => Seen { id: known, fragments: Vec::new() },
            (None, None) => break,
        };
        fragments += seen.fragments.len();
        let before = old.before(env, &seen.id).await?;
        let noted = merge.noted(env, &seen.id).await?;
        batch.push((seen, noted, before));
    }
    Ok(batch)
}

/// What a batch came to.
struct Done {
    namespace: Value,
    counts: Counts,
    lines: Vec<Value>,
}

impl Done {
    fn new(record: &NamespaceRecord) -> Self {
        Self { namespace: Value::from(shown(&record.name)), counts: Counts::default(), lines: Vec::new() }
    }

    fn line(&mut self, id: &ObjectId, name: &[u8], what: &str, why: &str) {
        self.lines.push(json!({
            "namespace": self.namespace,
            "name": alba_core::ids::text_or_hex(name),
            "object_id": hex::encode(id.as_bytes()),
            "what": what,
            "why": why,
        }));
    }

    fn result(&mut self, object: &RecoveredObject, why: &str, result: Recovered) {
        let manifest = &object.manifest;
        let (id, name) = (&manifest.object_id, manifest.name.as_bytes());
        match result {
            Recovered::Known if object.possibly_deleted => {
                self.counts.apart += 1;
                self.line(id, name, "apart", why);
            }
            Recovered::Stored | Recovered::Known => self.counts.restored += 1,
            Recovered::Apart(_) => {
                self.counts.apart += 1;
                let why = if why.is_empty() { "another object has its name" } else { why };
                self.line(id, name, "apart", why);
            }
            Recovered::Refused(error) => {
                self.counts.refused += 1;
                self.line(id, name, "refused", &error.to_string());
            }
        }
    }
}

fn add(sum: &mut Counts, more: &Counts) {
    sum.seen += more.seen;
    sum.restored += more.restored;
    sum.apart += more.apart;
    sum.deleted += more.deleted;
    sum.gone += more.gone;
    sum.incomplete += more.incomplete;
    sum.inline += more.inline;
    sum.refused += more.refused;
}

fn answer(
    task: &Task,
    namespaces: &Namespaces,
    osds: &Osds,
    results: &[(NamespaceRecord, Outcome)],
) -> Result<Answer, CliError> {
    let rows = results.iter().map(|(record, outcome)| {
        let counts = &outcome.counts;
        vec![
            shown(&record.name),
            if outcome.finished { "served again" } else { "waits" }.to_owned(),
            counts.restored.to_string(),
            outcome.findings.to_string(),
            counts.incomplete.to_string(),
            (counts.gone + counts.deleted).to_string(),
            (counts.inline + counts.refused).to_string(),
        ]
    });
    let head = ["NAMESPACE", "STATE", ">RESTORED", ">APART", ">INCOMPLETE", ">DELETED", ">OTHER"];
    let mut text = table(&head, rows.collect());
    for (record, why) in &namespaces.not_now {
        text.push_str(&format!("\nnamespace {}: {why}", shown(&record.name)));
    }
    for (id, long_id) in &osds.absent {
        text.push_str(&format!(
            "\nOSD {id} ({long_id}) was not asked: what only it holds is missing or incomplete"
        ));
    }
    if !osds.awaited.is_empty() {
        text.push_str(
            "\nGive the same command again when they are back, or name those that will not come back with --without-osd.",
        );
    }
    if let Some((record, _)) = results.iter().find(|(_, outcome)| outcome.findings > 0) {
        text.push_str(&format!(
            "\nObjects are listed apart: decide about them (alba list-recovery-findings {name}, then alba \
             resolve-recovery-findings {name} ...), and give the same command again.",
            name = shown(&record.name)
        ));
    }
    let report = task.work_dir.join("report.jsonl");
    text.push_str(&format!("\nWhat was not restored, and why: {}", report.display()));
    let whole = namespaces.not_now.is_empty()
        && results.iter().all(|(_, outcome)| {
            let counts = &outcome.counts;
            outcome.finished && counts.incomplete + counts.inline + counts.refused == 0
        });
    let shown_results: Vec<Value> = results
        .iter()
        .map(|(record, outcome)| {
            json!({
                "namespace": shown(&record.name),
                "finished": outcome.finished,
                "findings": outcome.findings,
                "counts": outcome.counts,
            })
        })
        .collect();
    let not_now = namespaces.not_now.iter();
    let not_now: Vec<Value> =
        not_now.map(|(record, why)| json!({"namespace": shown(&record.name), "why": why})).collect();
    let result = json!({
        "namespaces": shown_results,
        "not_now": not_now,
        "absent_osds": osds.absent.values().map(LongId::as_str).collect::<Vec<_>>(),
        "report": report,
        "whole": whole,
    });
    let mut answer = Answer::new(result, text)?;
    answer.exit = if whole { 0 } else { LEFT };
    Ok(answer)
}
