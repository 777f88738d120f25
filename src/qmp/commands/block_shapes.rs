//! What the commands about disks and their images take and answer.

use crate::qmp::schema::{Member, Shape, Type, optional, required};

pub(super) static FLAT: Shape =
    Shape::of(&[optional("flat", Type::Bool).means("leave out what is behind")]);
pub(super) static NODES: Shape =
    Shape::of(&[optional("query-nodes", Type::Bool).means("of all nodes")]);
pub(super) static RESIZE: Shape = Shape::of(&[
    optional("device", Type::Text).means("its name"),
    optional("node-name", Type::Text).means("or that of its node"),
    required("size", Type::Int).means("its new size in bytes"),
]);

const fn rate(name: &'static str) -> Member {
    required(name, Type::Int).means("at most so many in a second; 0 without limit")
}
const fn burst(name: &'static str) -> Member {
    optional(name, Type::Int).means("for a while so many")
}
const fn length(name: &'static str) -> Member {
    optional(name, Type::Int).means("how many seconds")
}
pub(super) static THROTTLE: Shape = Shape::of(&[
    optional("device", Type::Text).means("the id of its -drive"),
    optional("id", Type::Text).means("or that of its -device"),
    rate("bps"),
    rate("bps_rd"),
    rate("bps_wr"),
    rate("iops"),
    rate("iops_rd"),
    rate("iops_wr"),
    burst("bps_max"),
    burst("bps_rd_max"),
    burst("bps_wr_max"),
    burst("iops_max"),
    burst("iops_rd_max"),
    burst("iops_wr_max"),
    length("bps_max_length"),
    length("bps_rd_max_length"),
    length("bps_wr_max_length"),
    length("iops_max_length"),
    length("iops_rd_max_length"),
    length("iops_wr_max_length"),
    optional("iops_size", Type::Int).means("bytes that count as one request"),
    optional("group", Type::Text).means("whom it shares the limits with: none but itself so far"),
]);

pub(super) static BLOCK_NODE: Shape = Shape::open(&[
    required("driver", Type::Text).means("what it is: qcow2, raw, file, host_device"),
    optional("node-name", Type::Text).means("what to call it"),
]);
pub(super) static SNAPSHOT: Shape = Shape::of(&[
    optional("device", Type::Text).means("the id of its -drive"),
    optional("node-name", Type::Text).means("or the name of its node"),
    required("snapshot-file", Type::Text).means("the new image"),
    optional("snapshot-node-name", Type::Text).means("what to call its node"),
    optional("format", Type::Text).means("its format: qcow2"),
    optional("mode", Type::Enum(&["existing", "absolute-paths"]))
        .means("whether it is there, or to be made: absolute-paths"),
]);
pub(super) static THRESHOLD: Shape = Shape::of(&[
    required("node-name", Type::Text).means("the node that is written"),
    required("write-threshold", Type::Int)
        .means("so many bytes from its beginning; 0: nothing is told"),
]);
pub(super) static NODE_NAME: Shape =
    Shape::of(&[required("node-name", Type::Text).means("its name")]);

pub(super) static DISK: Shape = Shape::of(&[
    required("device", Type::Text),
    optional("qdev", Type::Text),
    required("type", Type::Text),
    required("removable", Type::Bool),
    required("locked", Type::Bool),
    optional("inserted", Type::Object(&NODE)),
    optional("io-status", Type::Enum(&["ok", "failed", "nospace"])),
]);
pub(super) static NODE: Shape = Shape::of(&[
    required("file", Type::Text),
    optional("node-name", Type::Text),
    required("ro", Type::Bool),
    required("drv", Type::Text),
    optional("backing_file", Type::Text),
    required("backing_file_depth", Type::Int),
    required("active", Type::Bool),
    required("encrypted", Type::Bool),
    required("detect_zeroes", Type::Enum(&["off", "on", "unmap"])),
    required("bps", Type::Int),
    required("bps_rd", Type::Int),
    required("bps_wr", Type::Int),
    required("iops", Type::Int),
    required("iops_rd", Type::Int),
    required("iops_wr", Type::Int),
    required("image", Type::Object(&IMAGE)),
    optional("bps_max", Type::Int),
    optional("bps_rd_max", Type::Int),
    optional("bps_wr_max", Type::Int),
    optional("iops_max", Type::Int),
    optional("iops_rd_max", Type::Int),
    optional("iops_wr_max", Type::Int),
    optional("bps_max_length", Type::Int),
    optional("bps_rd_max_length", Type::Int),
    optional("bps_wr_max_length", Type::Int),
    optional("iops_max_length", Type::Int),
    optional("iops_rd_max_length", Type::Int),
    optional("iops_wr_max_length", Type::Int),
    optional("iops_size", Type::Int),
    optional("group", Type::Text),
    required("cache", Type::Object(&CACHE)),
    required("write_threshold", Type::Int),
]);
pub(super) static IMAGE: Shape = Shape::of(&[
    required("filename", Type::Text),
    required("format", Type::Text),
    optional("dirty-flag", Type::Bool),
    optional("actual-size", Type::Int),
    required("virtual-size", Type::Int),
    optional("cluster-size", Type::Int),
    optional("backing-filename", Type::Text),
    optional("full-backing-filename", Type::Text),
    optional("backing-filename-format", Type::Text),
    optional("backing-image", Type::Object(&IMAGE)),
    optional("format-specific", Type::Object(&SPECIFIC)),
]);
pub(super) static SPECIFIC: Shape =
    Shape::open(&[required("type", Type::Enum(&["file", "qcow2"]))]);
pub(super) static CACHE: Shape = Shape::of(&[
    required("writeback", Type::Bool),
    required("direct", Type::Bool),
    required("no-flush", Type::Bool),
]);
pub(super) static STATS: Shape = Shape::of(&[
    optional("device", Type::Text),
    optional("qdev", Type::Text),
    optional("node-name", Type::Text),
    required("stats", Type::Object(&COUNTS)),
    optional("driver-specific", Type::Object(&DRIVER)),
    optional("parent", Type::Object(&STATS)),
    optional("backing", Type::Object(&STATS)),
]);
pub(super) static DRIVER: Shape =
    Shape::open(&[required("driver", Type::Enum(&["raw", "file", "host_device"]))]);
const fn count(name: &'static str) -> Member {
    required(name, Type::Int)
}
pub(super) static COUNTS: Shape = Shape::of(&[
    count("rd_bytes"),
    count("wr_bytes"),
    count("zone_append_bytes"),
    count("unmap_bytes"),
    count("rd_operations"),
    count("wr_operations"),
    count("zone_append_operations"),
    count("flush_operations"),
    count("unmap_operations"),
    count("rd_total_time_ns"),
    count("wr_total_time_ns"),
    count("zone_append_total_time_ns"),
    count("flush_total_time_ns"),
    count("unmap_total_time_ns"),
    count("wr_highest_offset"),
    count("rd_merged"),
    count("wr_merged"),
    count("zone_append_merged"),
    count("unmap_merged"),
    count("failed_rd_operations"),
    count("failed_wr_operations"),
    count("failed_zone_append_operations"),
    count("failed_flush_operations"),
    count("failed_unmap_operations"),
    count("invalid_rd_operations"),
    count("invalid_wr_operations"),
    count("invalid_zone_append_operations"),
    count("invalid_flush_operations"),
    count("invalid_unmap_operations"),
    required("account_invalid", Type::Bool),
    required("account_failed", Type::Bool),
    required("timed_stats", Type::List(&Type::Object(&super::NOTHING))),
]);
