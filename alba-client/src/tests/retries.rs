//! Which refusals of a commit are answered with another attempt, and which with an error at once.

use alba_core::env::MetaError;
use alba_core::ids::{GcEpoch, GroupId, ObjectVersion};
use alba_core::preset::Compression;
use alba_core::wire::rpc::nsm::NsmError;

use super::backend::{Fixture, NS, preset};
use super::*;

/// One put whose first commit ends like this: how many commits were sent, and its result.
fn put_refused(refusal: MetaError) -> (usize, Result<StoredObject, ClientError>) {
    let fixture = Fixture::new(5, 5, preset(&[[2, 2, 3, 1]], 1024, Compression::None));
    fixture.backend.group.lock().unwrap().refusals.push(Some(refusal));
    let result = fixture.run(async {
        let result = put(&fixture, "o", &data(5000)).await;
        if result.is_ok() {
            assert_eq!(get(&fixture, "o").await.unwrap(), data(5000));
        } else {
            assert_eq!(fixture.backend.stored(&name("o")), None);
        }
        result
    });
    let sent = fixture.backend.group.lock().unwrap().sent_to.len();
    assert_eq!(fixture.client.statistics().uploads_retried, u64::from(sent > 1));
    (sent, result)
}

#[test]
fn what_a_fresh_look_can_mend_is_tried_once_more() {
    for refusal in [
        NsmError::InvalidGcEpoch(GcEpoch::from_u32(3)),
        NsmError::NonUniqueObjectId,
        NsmError::InvalidFragmentSpread,
        NsmError::InactiveOsd(osd(1)),
        NsmError::InvalidBucket,
        NsmError::PresetViolated("changed".to_owned()),
    ] {
        let (sent, result) = put_refused(refusal.clone().into());
        assert_eq!((sent, result.is_ok()), (2, true), "{refusal}");
    }
}

#[test]
fn what_would_end_the_same_way_or_may_have_happened_is_told_at_once() {
    let in_words = || "why".to_owned();
    let group = GroupId::new("nsm-0").unwrap();
    for refusal in [
        NsmError::Unknown(in_words()).into(),
        NsmError::ObjectNotFound.into(),
        NsmError::OverwriteNotAllowed(name("o")).into(),
        NsmError::InvalidVersion(ObjectVersion(1)).into(),
        NsmError::AssertFailed(name("o")).into(),
        NsmError::TooLarge(in_words()).into(),
        NsmError::InvalidUpdate(in_words()).into(),
        NsmError::InsufficientFragments.into(),
        NsmError::NamespaceTrashed(NS).into(),
        NsmError::NamespaceRecovering(NS).into(),
        NsmError::NotRecovering(NS).into(),
        NsmError::MoveRefused(in_words()).into(),
        MetaError::SessionUnknown,
        MetaError::Unreachable { group, reason: in_words() },
        MetaError::Protocol(in_words()),
        MetaError::Storage(in_words()),
    ] {
        let (sent, result) = put_refused(refusal.clone());
        assert_eq!(sent, 1, "{refusal}");
        let error = result.unwrap_err();
        let renamed = matches!(error, ClientError::OverwriteNotAllowed(_) | ClientError::AssertFailed(_));
        assert!(renamed || error == ClientError::Meta(refusal.clone()), "{error} for {refusal}");
    }
}
