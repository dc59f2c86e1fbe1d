//! Names of operations in metrics and logs.

use alba_core::wire::proxy::Command;

/// What dashboards and log searches know a command as.
pub(crate) fn name(command: Command) -> &'static str {
    match command {
        Command::ListNamespaces => "list_namespaces",
        Command::NamespaceExists => "namespace_exists",
        Command::CreateNamespace => "create_namespace",
        Command::DeleteNamespace => "delete_namespace",
        Command::ListObjects => "list_objects",
        Command::DeleteObject => "delete_object",
        Command::GetObjectInfo => "get_object_info",
        Command::ReadObjectFs => "read_object_fs",
        Command::WriteObjectFs => "write_object_fs",
        Command::ReadObjectsSlices => "read_objects_slices",
        Command::InvalidateCache => "invalidate_cache",
        Command::ProxyStatistics => "proxy_statistics",
        Command::DropCache => "drop_cache",
        Command::GetVersion => "get_version",
        Command::OsdView => "osd_view",
        Command::GetClientConfig => "get_client_config",
        Command::Ping => "ping",
        Command::WriteObjectFs2 => "write_object_fs2",
        Command::OsdInfo => "osd_info",
        Command::ReadObjectsSlices2 => "read_objects_slices2",
        Command::ApplySequence => "apply_sequence",
        Command::ReadObjects => "read_objects",
        Command::MultiExists => "multi_exists",
        Command::OsdInfo2 => "osd_info2",
        Command::GetAlbaId => "get_alba_id",
        Command::ListNamespaces2 => "list_namespaces2",
        Command::HasLocalFragmentCache => "has_local_fragment_cache",
        Command::UpdateSession => "update_session",
        Command::GetFragmentEncryptionKey => "get_fragment_encryption_key",
    }
}
