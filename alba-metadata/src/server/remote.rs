//! Delivery to an NSM group of another process. Messages carry their own numbers, so a session of its own for each
//! delivery is enough: a repeat has no second effect.

use alba_core::env::{Deadline, Env};
use alba_core::ids::{GroupId, MessageId};
use alba_core::net::rpc::RpcConnection;
use alba_core::wire::rpc::nsm::NsmCommand;
use alba_core::wire::rpc::{Reply, Request, RequestId};

use super::deliver::{Failure, group_refusal};

/// Delivers to the first of the servers that takes it; `first` is its first message.
pub(super) async fn deliver(
    env: &Env,
    group: &GroupId,
    servers: &[String],
    first: MessageId,
    command: NsmCommand,
    deadline: Deadline,
) -> Result<(), Failure> {
    let mut seen = format!("group {group} has no servers");
    for server in servers {
        match deliver_to(env, group, server, first, command.clone(), deadline).await {
            Ok(()) => return Ok(()),
            // The group's word: another server would say the same.
            Err(Failure::Refused(id, reason)) => return Err(Failure::Refused(id, reason)),
            Err(Failure::Trouble(reason)) => seen = format!("{server}: {reason}"),
        }
    }
    Err(seen.into())
}

async fn deliver_to(
    env: &Env,
    group: &GroupId,
    server: &str,
    first: MessageId,
    command: NsmCommand,
    deadline: Deadline,
) -> Result<(), Failure> {
    let address = server.parse().map_err(|_| "not an address (ip:port)".to_owned())?;
    let connection = RpcConnection::open(env, address, deadline).await.map_err(|error| error.to_string())?;
    let mut nonce = [0; 16];
    env.rng.fill(&mut nonce);
    let open = Request::OpenSession { group: group.clone(), nonce };
    let session = match connection.call(&open, deadline).await.map(|answer| answer.reply) {
        Ok(Reply::Session(session)) => session,
        Ok(other) => return Err(format!("no session: {other:?}").into()),
        Err(error) => return Err(error.to_string().into()),
    };
    let id = RequestId { session, sequence: 1, lowest_unacknowledged: 1 };
    let request = Request::Nsm(group.clone(), id, command);
    match connection.call(&request, deadline).await.map(|answer| answer.reply) {
        Ok(Reply::Nsm(Ok(_))) => Ok(()),
        Ok(Reply::Nsm(Err(error))) => Err(group_refusal(first, &error)),
        Ok(other) => Err(format!("not delivered: {other:?}").into()),
        Err(error) => Err(error.to_string().into()),
    }
}
