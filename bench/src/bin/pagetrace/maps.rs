//! The mappings of a process, from `/proc/PID/maps`.

use std::{fs, io};

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Shared mappings of files and shared memory; their pages count though they belong to a file.
    pub shared: bool,
}

/// The writable mappings of `pid`, ascending.
pub(crate) fn writable(pid: i32) -> io::Result<Vec<Mapping>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps
        .lines()
        .filter_map(parse)
        .filter(|(_, access, _)| access.starts_with("rw"))
        .map(mapping)
        .collect())
}

/// Where the kernel's own code page is mapped: it holds a `syscall` instruction.
pub(crate) fn vdso(pid: i32) -> io::Result<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    maps.lines()
        .filter_map(parse)
        .find(|(_, _, name)| *name == "[vdso]")
        .map(|(range, _, _)| range)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has no vdso"))
}

fn mapping(((start, end), access, _): ((u64, u64), &str, &str)) -> Mapping {
    Mapping { start, end, shared: access.as_bytes().get(3) == Some(&b's') }
}

/// Address range, access and name of one line.
fn parse(line: &str) -> Option<((u64, u64), &str, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    Some((range, words.next()?, words.nth(3).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let line =
            "7ffd1000-7ffd3000 rw-s 00000000 00:01 1024                       /memfd:ram (deleted)";
        let (range, access, name) = parse(line).unwrap();
        assert_eq!((range, access, name), ((0x7ffd_1000, 0x7ffd_3000), "rw-s", "/memfd:ram"));
        assert!(mapping((range, access, name)).shared);
        assert_eq!(parse("1000-2000 rw-p 00000000 00:00 0").unwrap().2, "");
    }
}
