//! Deleting namespaces so that they can come back for a while.

use alba_core::env::{Deadline, MetaError};
use alba_core::ids::NamespaceName;
use alba_core::wire::rpc::abm::{AbmCommand, AbmError, AbmOutcome, NamespaceRecord};

use crate::namespaces::unexpected;
use crate::{Client, ClientError};

impl Client {
    /// Deletes a namespace as users do: it goes to the trash, where it keeps all it has for as many days as the backend is
    /// configured for, and its name is free at once. Its record there; none when there is no trash and it is gone for good.
    pub async fn discard_namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError> {
        self.engine.namespaces.forget(name);
        let command = AbmCommand::DiscardNamespace { name: name.clone() };
        let told = self.engine.tell_directory(command, deadline).await;
        self.engine.namespaces.forget(name);
        match told {
            Ok(AbmOutcome::Namespace(record)) => Ok(Some(record)),
            Ok(AbmOutcome::Done) => Ok(None),
            Ok(_) => Err(unexpected("Namespace")),
            Err(ClientError::Meta(MetaError::Abm(
                AbmError::NamespaceUnknown(name) | AbmError::NamespaceNotActive(name),
            ))) => Err(ClientError::NamespaceUnknown(name)),
            Err(error) => Err(error),
        }
    }

    /// Takes a namespace out of the trash, with all it had.
    pub async fn undelete_namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<NamespaceRecord, ClientError> {
        match self.engine.tell_directory(AbmCommand::UndeleteNamespace { name: name.clone() }, deadline).await
        {
            Ok(AbmOutcome::Namespace(record)) => Ok(record),
            Ok(_) => Err(unexpected("Namespace")),
            Err(ClientError::Meta(MetaError::Abm(AbmError::NamespaceUnknown(name)))) => {
                Err(ClientError::NamespaceUnknown(name))
            }
            Err(error) => Err(error),
        }
    }
}
