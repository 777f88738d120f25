//! `info …`: what people ask, in QEMU's words.

use serde_json::Value as Json;

use super::words::{device, flag};
use super::{Asked, Does, Error, Human, INFO, Param};

pub(super) static TABLE: &[Human] = &[
    info(&["balloon"], "show balloon information", |asked| {
        let megabytes = |answer: &Json| answer["actual"].as_u64().unwrap_or(0) >> 20;
        let answer = asked.query("query-balloon")?;
        Ok(format!("balloon: actual={}\r\n", megabytes(&answer)))
    }),
    taking(
        &["block"],
        &[flag('n', "nodes"), flag('v', "verbose"), device("device").optional()],
        "[-n] [-v] [device]",
        "show info of one block device or all block devices (-n: show named nodes; -v: show details)",
        blocks,
    ),
    info(&["block-jobs"], "show progress of ongoing block device operations", |_| {
        Ok("No active jobs\r\n".into())
    }),
    info(&["blockstats"], "show block device statistics", block_stats),
    info(&["chardev"], "show the character devices", chardevs),
    info(&["cpus"], "show infos for each CPU", cpus),
    info(&["dirty_rate"], "show dirty rate information", dirty_rate),
    info(&["dump"], "Display the latest dump status", dumped),
    info(&["history"], "show the command line history", |asked| {
        let line = |(at, line): (usize, &String)| format!("{at}: '{line}'\r\n");
        Ok(asked.history.into_iter().flatten().enumerate().map(line).collect())
    }),
    info(&["iothreads"], "show iothreads", io_threads),
    info(&["kvm"], "show KVM information", |_| Ok("kvm support: enabled\r\n".into())),
    info(&["memdev"], "show memory backends", memory_backends),
    info(&["memory_size_summary"], "show the amount of memory in bytes", |asked| {
        let answer = asked.query("query-memory-size-summary")?;
        let plugged = answer["plugged-memory"].as_u64().unwrap_or(0);
        Ok(format!("base memory: {}\r\nplugged memory: {plugged}\r\n", answer["base-memory"]))
    }),
    info(&["mice"], "show which guest mouse is receiving events", |_| {
        Ok("No mouse devices connected\r\n".into())
    }),
    info(&["migrate"], "show migration status", migration),
    info(&["migrate_capabilities"], "show current migration capabilities", capabilities),
    info(&["migrate_parameters"], "show current migration parameters", parameters),
    info(&["name"], "show the current VM name", |asked| field(asked, "query-name", "name")),
    info(&["network"], "show the network state", |asked| Ok(asked.vmm.nets.describe())),
    info(&["pci"], "show PCI info", |_| Ok(String::new())),
    info(&["status"], "show the current VM status (running|paused)", status),
    info(&["uuid"], "show the current VM UUID", |asked| field(asked, "query-uuid", "UUID")),
    info(&["vcpu_dirty_limit"], "show dirty page limit information of all vCPU", limits),
    info(&["version"], "show the version", version),
];

const fn info(
    names: &'static [&'static str],
    help: &'static str,
    says: fn(&Asked<'_>) -> Result<String, Error>,
) -> Human {
    taking(names, &[], "", help, says)
}

const fn taking(
    names: &'static [&'static str],
    params: &'static [Param],
    usage: &'static str,
    help: &'static str,
    says: fn(&Asked<'_>) -> Result<String, Error>,
) -> Human {
    Human { prefix: INFO, names, params, usage, help, run: Does::Says(says) }
}

fn field(asked: &Asked<'_>, command: &str, name: &str) -> Result<String, Error> {
    let answer = asked.query(command)?;
    Ok(answer[name].as_str().map_or(String::new(), |text| format!("{text}\r\n")))
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or("")
}

fn switch(value: &Json) -> &'static str {
    if value == true { "on" } else { "off" }
}

/// What a query lists.
fn list(asked: &Asked<'_>, command: &str) -> Result<Vec<Json>, Error> {
    Ok(match asked.query(command)? {
        Json::Array(all) => all,
        _ => Vec::new(),
    })
}

fn status(asked: &Asked<'_>) -> Result<String, Error> {
    let state = asked.vmm.guest.run_state();
    Ok(match (state.is_running(), state.name()) {
        (true, _) => "VM status: running\r\n".into(),
        (false, "paused") => "VM status: paused\r\n".into(),
        (false, why) => format!("VM status: paused ({why})\r\n"),
    })
}

fn version(asked: &Asked<'_>) -> Result<String, Error> {
    let answer = asked.query("query-version")?;
    let number = |name: &str| answer["qemu"][name].as_u64().unwrap_or(0);
    let package = text(&answer["package"]);
    Ok(format!("{}.{}.{}{package}\r\n", number("major"), number("minor"), number("micro")))
}

fn cpus(asked: &Asked<'_>) -> Result<String, Error> {
    let line = |cpu: &Json| {
        let mark = if cpu["cpu-index"] == 0 { '*' } else { ' ' };
        format!("{mark} CPU #{}: thread_id={}\r\n", cpu["cpu-index"], cpu["thread-id"])
    };
    Ok(list(asked, "query-cpus-fast")?.iter().map(line).collect())
}

fn io_threads(asked: &Asked<'_>) -> Result<String, Error> {
    let one = |thread: &Json| {
        let line = |name| format!("  {name}={}\r\n", thread[name]);
        let tuned = ["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"].map(line).concat();
        format!("{}:\r\n  thread_id={}\r\n{tuned}", text(&thread["id"]), thread["thread-id"])
    };
    Ok(list(asked, "query-iothreads")?.iter().map(one).collect())
}

fn chardevs(asked: &Asked<'_>) -> Result<String, Error> {
    let line = |device: &Json| {
        format!("{}: filename={}\r\n", text(&device["label"]), text(&device["filename"]))
    };
    Ok(list(asked, "query-chardev")?.iter().map(line).collect())
}

fn memory_backends(asked: &Asked<'_>) -> Result<String, Error> {
    let one = |memory: &Json| {
        let line = |name: &str| format!("  {name}: {}\r\n", memory[name]);
        let known = ["merge", "dump", "prealloc", "share", "reserve"];
        let known = known.into_iter().filter(|name| !memory[name].is_null());
        let lines: String = known.map(line).collect();
        format!(
            "memory backend: {}\r\n  size:  {}\r\n{lines}  policy: {}\r\n  host nodes: \r\n",
            text(&memory["id"]),
            memory["size"],
            text(&memory["policy"]),
        )
    };
    let all: String = list(asked, "query-memdev")?.iter().map(one).collect();
    Ok(all + "\r\n")
}

fn blocks(asked: &Asked<'_>) -> Result<String, Error> {
    let wanted = asked.args.text_if_given("device");
    let nodes = asked.args.has("nodes");
    let all = list(asked, if nodes { "query-named-block-nodes" } else { "query-block" })?;
    let name = |disk: &Json| match nodes {
        true => text(&disk["node-name"]).to_owned(),
        false => text(&disk["device"]).to_owned(),
    };
    let all: Vec<String> = all
        .iter()
        .filter(|disk| wanted.is_none_or(|wanted| name(disk) == wanted))
        .map(|disk| {
            block(disk, if nodes { disk } else { &disk["inserted"] }, asked.args.has("verbose"))
        })
        .collect();
    match wanted {
        Some(wanted) if all.is_empty() => Ok(format!("Device '{wanted}' not found\r\n")),
        _ => Ok(all.join("\r\n")),
    }
}

fn block(disk: &Json, node: &Json, verbose: bool) -> String {
    let (device, name) = (text(&disk["device"]), text(&node["node-name"]));
    let title = match (device, name) {
        ("", "") => text(&disk["qdev"]).to_owned(),
        ("", name) => name.to_owned(),
        (device, "") => device.to_owned(),
        (device, name) => format!("{device} ({name})"),
    };
    let mut said = format!("{title}: {} ({}", text(&node["file"]), text(&node["drv"]));
    if node["ro"] == true {
        said += ", read-only";
    }
    said += ")\r\n";
    if let Some(status) = disk["io-status"].as_str().filter(|status| *status != "ok") {
        said += &format!("    I/O status:       {status}\r\n");
    }
    if let Some(by) = disk["qdev"].as_str().filter(|by| !by.is_empty()) {
        said += &format!("    Attached to:      {by}\r\n");
    }
    let cache = &node["cache"];
    let mut how = vec![if cache["writeback"] == true { "writeback" } else { "writethrough" }];
    how.extend((cache["direct"] == true).then_some("direct"));
    how.extend((cache["no-flush"] == true).then_some("ignore flushes"));
    said += &format!("    Cache mode:       {}\r\n", how.join(", "));
    if let Some(file) = node["backing_file"].as_str() {
        let depth = &node["backing_file_depth"];
        said += &format!("    Backing file:     {file} (chain depth: {depth})\r\n");
    }
    if let Some(how) = node["detect_zeroes"].as_str().filter(|how| *how != "off") {
        said += &format!("    Detect zeroes:    {how}\r\n");
    }
    let limits = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];
    if limits.iter().any(|limit| node[limit].as_u64().unwrap_or(0) > 0) {
        let of = |limit: &str| format!(" {limit}={}", node[limit].as_u64().unwrap_or(0));
        said += &format!("    I/O throttling:  {}\r\n", limits.map(of).concat());
    }
    if verbose {
        let image = &node["image"];
        let number = |name: &str| image[name].as_u64().unwrap_or(0);
        said += &format!(
            "\r\nImages:\r\nimage: {}\r\nfile format: {}\r\nvirtual size: {} ({} bytes)\r\ndisk size: {}\r\n",
            text(&image["filename"]),
            text(&image["format"]),
            for_people(number("virtual-size")),
            number("virtual-size"),
            for_people(number("actual-size")),
        );
    }
    said
}

/// With three digits, as QEMU writes sizes.
fn for_people(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let number = format!("{value:.digits$}");
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => &number,
    };
    format!("{number} {}", UNITS[unit])
}

fn block_stats(asked: &Asked<'_>) -> Result<String, Error> {
    const NAMES: [&str; 11] = [
        "rd_bytes",
        "wr_bytes",
        "rd_operations",
        "wr_operations",
        "flush_operations",
        "wr_total_time_ns",
        "rd_total_time_ns",
        "flush_total_time_ns",
        "rd_merged",
        "wr_merged",
        "idle_time_ns",
    ];
    let line = |disk: &Json| {
        let name = disk["device"].as_str().filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| text(&disk["node-name"]));
        let of = |name: &str| format!(" {name}={}", disk["stats"][name].as_u64().unwrap_or(0));
        format!("{name}:{}\r\n", NAMES.map(of).concat())
    };
    Ok(list(asked, "query-blockstats")?.iter().map(line).collect())
}

fn dirty_rate(asked: &Asked<'_>) -> Result<String, Error> {
    let answer = asked.query("query-dirty-rate")?;
    let rate = match answer["dirty-rate"].as_i64() {
        Some(rate) => format!("Dirty rate: {rate} (MB/s)\r\n"),
        None => "Dirty rate: (not ready)\r\n".into(),
    };
    let per_cpu =
        |cpu: &Json| format!("vcpu[{}], Dirty rate: {} (MB/s)\r\n", cpu["id"], cpu["dirty-rate"]);
    let per_cpu: String =
        answer["vcpu-dirty-rate"].as_array().into_iter().flatten().map(per_cpu).collect();
    Ok(format!(
        "Status: {}\r\nStart Time: {} (ms)\r\nSample Pages: {} (per GB)\r\nPeriod: {} (sec)\r\nMode: {}\r\n{rate}{per_cpu}",
        text(&answer["status"]),
        answer["start-time"].as_i64().unwrap_or(0).saturating_mul(1000),
        answer["sample-pages"],
        answer["calc-time"],
        text(&answer["mode"]),
    ))
}

fn limits(asked: &Asked<'_>) -> Result<String, Error> {
    let all = list(asked, "query-vcpu-dirty-limit")?;
    if all.is_empty() {
        return Ok("Dirty page limit not enabled!\r\n".into());
    }
    let line = |cpu: &Json| {
        format!(
            "vcpu[{}], limit rate {} (MB/s), current rate {} (MB/s)\r\n",
            cpu["cpu-index"], cpu["limit-rate"], cpu["current-rate"]
        )
    };
    Ok(all.iter().map(line).collect())
}

fn dumped(asked: &Asked<'_>) -> Result<String, Error> {
    let answer = asked.query("query-dump")?;
    let status = text(&answer["status"]);
    let mut said = format!("Status: {status}\r\n");
    if status == "active" {
        let number = |name: &str| answer[name].as_f64().unwrap_or(0.0);
        let per_cent = 100.0 * number("completed") / number("total").max(1.0);
        said += &format!("Finished: {per_cent:.2} %\r\n");
    }
    Ok(said)
}

fn capabilities(asked: &Asked<'_>) -> Result<String, Error> {
    let line = |one: &Json| format!("{}: {}\r\n", text(&one["capability"]), switch(&one["state"]));
    Ok(list(asked, "query-migrate-capabilities")?.iter().map(line).collect())
}

/// Units behind some of them.
fn parameters(asked: &Asked<'_>) -> Result<String, Error> {
    let answer = asked.query("query-migrate-parameters")?;
    let line = |(name, value): (&String, &Json)| {
        let unit = match name.as_str() {
            "announce-initial"
            | "announce-max"
            | "announce-step"
            | "downtime-limit"
            | "x-checkpoint-delay"
            | "x-vcpu-dirty-limit-period" => " ms",
            "max-bandwidth" | "avail-switchover-bandwidth" => " bytes/second",
            "xbzrle-cache-size" => " bytes",
            "vcpu-dirty-limit" => " MB/s",
            _ => "",
        };
        let value = match value {
            Json::Bool(_) => switch(value).to_owned(),
            Json::String(text) if name.starts_with("tls-") => format!("'{text}'"),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!("{name}: {value}{unit}\r\n")
    };
    Ok(answer.as_object().into_iter().flatten().map(line).collect())
}

/// A line of `info migrate`: its words, the member, its divisor as a shift, and its unit.
type Figure = (&'static str, &'static str, u32, &'static str);

const TIMES: [Figure; 4] = [
    ("total time", "total-time", 0, " ms"),
    ("expected downtime", "expected-downtime", 0, " ms"),
    ("downtime", "downtime", 0, " ms"),
    ("setup", "setup-time", 0, " ms"),
];
const PAGES: [Figure; 13] = [
    ("remaining ram", "remaining", 10, " kbytes"),
    ("total ram", "total", 10, " kbytes"),
    ("duplicate", "duplicate", 0, " pages"),
    ("normal", "normal", 0, " pages"),
    ("normal bytes", "normal-bytes", 10, " kbytes"),
    ("dirty sync count", "dirty-sync-count", 0, ""),
    ("page size", "page-size", 10, " kbytes"),
    ("multifd bytes", "multifd-bytes", 10, " kbytes"),
    ("pages-per-second", "pages-per-second", 0, ""),
    ("dirty pages rate", "dirty-pages-rate", 0, " pages"),
    ("precopy ram", "precopy-bytes", 10, " kbytes"),
    ("downtime ram", "downtime-bytes", 10, " kbytes"),
    ("postcopy ram", "postcopy-bytes", 10, " kbytes"),
];
/// Left out where they are zero.
const RARE: [&str; 4] = ["dirty-pages-rate", "precopy-bytes", "downtime-bytes", "postcopy-bytes"];
const DELTAS: [Figure; 4] = [
    ("cache size", "cache-size", 0, " bytes"),
    ("xbzrle transferred", "bytes", 10, " kbytes"),
    ("xbzrle pages", "pages", 0, " pages"),
    ("xbzrle cache miss", "cache-miss", 0, " pages"),
];

fn figures(of: &Json, figures: &[Figure]) -> String {
    let line = |(words, member, shift, unit): &Figure| {
        let value = of[member].as_u64()?;
        let shown = value > 0 || !RARE.contains(member);
        shown.then(|| format!("{words}: {}{unit}\r\n", value >> shift))
    };
    figures.iter().filter_map(line).collect()
}

fn migration(asked: &Asked<'_>) -> Result<String, Error> {
    let answer = asked.query("query-migrate")?;
    let mut said = String::new();
    if let Some(reasons) = answer["blocked-reasons"].as_array() {
        said += "Migration blocked:\r\n";
        reasons.iter().for_each(|reason| said += &format!("  {}\r\n", text(reason)));
    }
    if let Some(status) = answer["status"].as_str() {
        said += &format!("Migration status: {status}");
        if let Some(why) = answer["error-desc"].as_str().filter(|_| status == "failed") {
            said += &format!(" ({why})");
        }
        said += "\r\n";
        said += &figures(&answer, &TIMES);
    }
    let (ram, deltas) = (&answer["ram"], &answer["xbzrle-cache"]);
    let number = |of: &Json, name: &str| of[name].as_f64().unwrap_or(0.0);
    if ram.is_object() {
        let sent = ram["transferred"].as_u64().unwrap_or(0) >> 10;
        said += &format!("transferred ram: {sent} kbytes\r\n");
        said += &format!("throughput: {:.2} mbps\r\n", number(ram, "mbps"));
        said += &figures(ram, &PAGES);
    }
    if deltas.is_object() {
        said += &figures(deltas, &DELTAS);
        said += &format!("xbzrle cache miss rate: {:.2}\r\n", number(deltas, "cache-miss-rate"));
        said += &format!("xbzrle encoding rate: {:.2}\r\n", number(deltas, "encoding-rate"));
        said += &figures(deltas, &[("xbzrle overflow", "overflow", 0, "")]);
    }
    if let Some(per_cent) = answer["cpu-throttle-percentage"].as_u64() {
        said += &format!("cpu throttle percentage: {per_cent}\r\n");
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, says) in [
            (0, "0 B"),
            (1 << 20, "1 MiB"),
            (1536, "1.5 KiB"),
            (200 << 10, "200 KiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(for_people(bytes), says);
        }
    }
}
