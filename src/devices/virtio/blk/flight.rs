//! A request on its way: sent off, arrived in part, done, failed.

use super::super::queue::{Buffer, Fault, Queue};
use super::request::{Action, Request, Status, Step, part};
use super::{Disk, answer};
use crate::block::ring::{Aligned, Arrival, Memory, Work};
use crate::block::{Image, probe};
use crate::config::{DetectZeroes, OnError};
use crate::devices::{DiskError, DiskErrorAction, DiskEvent};
use crate::io::reason;
use crate::memory::GuestRam;
use std::io;

/// Bytes of memory of its own that a request has at a time, however long it is.
const PIECE: u64 = 1 << 20;
/// The longest write that is looked at for zeros: nobody else has the lock meanwhile.
const DETECTED: u64 = 4 << 20;

impl Disk {
    /// Begins a request that makes sense.
    pub(super) fn start(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        mut request: Request,
    ) -> Result<(), Fault> {
        match request.action {
            Action::Flush if !self.image.has_flush() => return self.finish(ram, queue, request),
            Action::Discard if !self.image.config.discard => {
                return self.finish(ram, queue, request);
            }
            Action::Read | Action::Write | Action::Discard | Action::Zeroes { .. }
                if request.bytes == 0 =>
            {
                return self.finish(ram, queue, request);
            }
            Action::Write => {
                if !self.image.writable() {
                    return self.fail(ram, queue, request, libc::EPERM);
                }
                let detect = self.image.config.detect_zeroes;
                let looks = detect != DetectZeroes::Off && request.bytes <= DETECTED;
                if looks && is_zero(ram, &request.data)? {
                    request.action = Action::Zeroes { unmap: detect == DetectZeroes::Unmap };
                }
            }
            Action::Discard | Action::Zeroes { .. } if !self.image.writable() => {
                return self.fail(ram, queue, request, libc::EPERM);
            }
            _ => {}
        }
        if matches!(request.action, Action::Write | Action::Zeroes { .. }) {
            self.image.will_write(request.at + request.bytes);
        }
        self.send(ram, queue, request)
    }

    /// Sends off what is not done yet.
    fn send(&mut self, ram: &GuestRam, queue: &mut Queue, request: Request) -> Result<(), Fault> {
        let (at, left) = (request.at + request.done, request.bytes - request.done);
        let (work, memory) = match (request.step, request.action) {
            (Step::FlushAfter, _) | (_, Action::Flush) => {
                if let Some(errno) = self.image.lost() {
                    return self.fail(ram, queue, request, errno);
                }
                (Work::Flush, Memory::None)
            }
            (Step::ZerosWritten, _) => match Aligned::new(left.min(PIECE) as usize) {
                Ok(zeros) => (Work::Write { at }, Memory::Own(zeros)),
                Err(_) => return self.fail(ram, queue, request, libc::ENOMEM),
            },
            (Step::Direct, Action::Read) => {
                let data = part(&request.data, request.done, left);
                for buffer in &data {
                    // It need not be held until the kernel has written: an image of memory is fixed
                    // while the guest, and with it the disk, stands still.
                    drop(ram.ask_to_write(buffer.gpa, buffer.bytes.into()));
                }
                match self.memory(ram, &data, left, false) {
                    Ok(memory) => (Work::Read { at }, memory),
                    Err(_) => return self.fail(ram, queue, request, libc::ENOMEM),
                }
            }
            (Step::Direct, Action::Write) => {
                let data = part(&request.data, request.done, left);
                let guessed = self.is_guess(at);
                let Ok(mut memory) = self.memory(ram, &data, left, guessed) else {
                    return self.fail(ram, queue, request, libc::ENOMEM);
                };
                if let Memory::Own(own) = &mut memory {
                    copy_out(ram, &data, own.get_mut())?;
                    // What is written, and not what the guest's memory held before or after.
                    if guessed && probe::format(own.get()).is_some() {
                        return self.fail(ram, queue, request, libc::EPERM);
                    }
                }
                (Work::Write { at }, memory)
            }
            (Step::Direct, Action::Discard) => (Work::Discard { at, bytes: left }, Memory::None),
            (Step::Direct, Action::Zeroes { unmap }) => {
                let unmap = unmap && self.image.config.discard;
                (Work::Zeroes { at, bytes: left, unmap }, Memory::None)
            }
        };
        let number = self.next_number;
        match self.lanes.push(number, &self.image, work, memory) {
            Ok(()) => {
                if work == Work::Flush {
                    self.image.begin_flush();
                }
                self.next_number += 1;
                self.under_way.insert(number, request);
                Ok(())
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.fail(ram, queue, request, errno)
            }
        }
    }

    /// Guest memory as it is, or memory that `O_DIRECT` takes and, `own` and where an image has
    /// tables, that no guest changes: of that only the first [`PIECE`].
    pub(super) fn memory(
        &self,
        ram: &GuestRam,
        data: &[Buffer],
        bytes: u64,
        own: bool,
    ) -> io::Result<Memory> {
        let own = own || self.image.is_ordered();
        let unit = u64::from(self.alignment);
        let fits = |buffer: &Buffer| {
            buffer.gpa.is_multiple_of(unit) && u64::from(buffer.bytes).is_multiple_of(unit)
        };
        Ok(match !own && data.iter().all(fits) {
            true => Memory::Guest {
                ram: ram.clone(),
                ranges: data.iter().map(|buffer| (buffer.gpa, buffer.bytes)).collect(),
            },
            false => Memory::Own(Aligned::new(bytes.min(PIECE) as usize)?),
        })
    }

    /// Takes what has arrived, so many at most.
    pub(super) fn arrivals(
        &mut self,
        ram: &GuestRam,
        queues: &mut [Queue],
        most: usize,
    ) -> Result<(), Fault> {
        for _ in 0..most {
            let Some(arrival) = self.next_arrival() else { break };
            let Some(request) = self.under_way.remove(&arrival.number) else { continue };
            note(&self.image, &request, &arrival);
            let queue = &mut queues[usize::from(request.queue)];
            self.arrived(ram, queue, request, &arrival)?;
        }
        // Requests of several steps go on.
        self.lanes.submit();
        Ok(())
    }

    fn arrived(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        mut request: Request,
        arrival: &Arrival,
    ) -> Result<(), Fault> {
        let errno = (arrival.result < 0).then_some(-arrival.result);
        let count = arrival.result.max(0) as u64;
        match (request.step, request.action, errno) {
            (_, _, Some(libc::EINTR | libc::EAGAIN)) => self.send(ram, queue, request),
            (Step::Direct, Action::Discard, Some(libc::EOPNOTSUPP)) => {
                self.finish(ram, queue, request)
            }
            (Step::Direct, Action::Zeroes { .. }, Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                request.step = Step::ZerosWritten;
                self.send(ram, queue, request)
            }
            (_, _, Some(errno)) => self.fail(ram, queue, request, errno),
            (Step::Direct, Action::Read, None) => {
                let left = request.bytes - request.done;
                let data = part(&request.data, request.done, left);
                if let Memory::Own(own) = &arrival.memory {
                    copy_in(ram, &data, &own.get()[..count as usize])?;
                }
                // Behind the end of the file, in its last sector or because it was cut short, are
                // zeros; `O_DIRECT` goes on at a boundary only.
                let end = match count {
                    0 => left.min(PIECE),
                    count => count.next_multiple_of(self.alignment.into()).min(left),
                };
                fill(ram, &part(&data, count, end - count))?;
                request.done += end;
                self.go_on(ram, queue, request)
            }
            (Step::ZerosWritten, ..) | (Step::Direct, Action::Write, _)
                if count == 0 || self.is_in_guess(&request, count) =>
            {
                self.fail(ram, queue, request, libc::ENOSPC)
            }
            (Step::ZerosWritten, ..) | (Step::Direct, Action::Write, _) => {
                request.done += count;
                self.go_on(ram, queue, request)
            }
            (Step::Direct, Action::Discard | Action::Zeroes { .. }, _) => {
                request.done = request.bytes;
                self.go_on(ram, queue, request)
            }
            (Step::FlushAfter, ..) | (Step::Direct, Action::Flush, _) => {
                self.finish(ram, queue, request)
            }
        }
    }

    /// The rest, or what comes after all of it.
    fn go_on(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        mut request: Request,
    ) -> Result<(), Fault> {
        if request.done < request.bytes {
            return self.send(ram, queue, request);
        }
        if request.action != Action::Read {
            self.image.stats.wrote_to(request.at + request.bytes);
            if !self.write_cache && self.image.has_flush() {
                request.step = Step::FlushAfter;
                return self.send(ram, queue, request);
            }
        }
        self.finish(ram, queue, request)
    }

    fn finish(&mut self, ram: &GuestRam, queue: &mut Queue, request: Request) -> Result<(), Fault> {
        let took = request.since.elapsed();
        self.image.stats.done(request.action.operation(), request.bytes, took);
        answer(ram, queue, &request.chain, Status::Ok)
    }

    /// The host could not do it: the guest is told, or not, or stopped.
    fn fail(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        request: Request,
        errno: i32,
    ) -> Result<(), Fault> {
        let is_read = request.action == Action::Read;
        let no_space = errno == libc::ENOSPC;
        let policy = if is_read { self.policy.read } else { self.policy.write };
        let action = match policy {
            OnError::Report => DiskErrorAction::Report,
            OnError::Ignore => DiskErrorAction::Ignore,
            OnError::Stop => DiskErrorAction::Stop,
            OnError::NoSpace if no_space => DiskErrorAction::Stop,
            OnError::NoSpace => DiskErrorAction::Report,
        };
        self.image.stats.failed(request.action.operation(), request.since.elapsed());
        let config = &self.image.config;
        // Told before the guest is: whoever hears of a stop knows why.
        let told = DiskError {
            device: config.drive.as_ref().map(|_| config.name.clone()).unwrap_or_default(),
            node: Some(self.image.node()).filter(|node| !node.starts_with('#')),
            qdev: self.path.clone(),
            is_read,
            action,
            no_space,
            reason: reason(&io::Error::from_raw_os_error(errno)),
        };
        if action == DiskErrorAction::Stop {
            self.stopped.push((request.queue, request.chain));
            self.image.is_in_trouble(no_space);
            (self.tell)(DiskEvent::Error(told));
            return Ok(());
        }
        (self.tell)(DiskEvent::Error(told));
        let status = if action == DiskErrorAction::Ignore { Status::Ok } else { Status::Error };
        answer(ram, queue, &request.chain, status)
    }

    /// Whether a write there could make the next guess at the format another one.
    fn is_guess(&self, at: u64) -> bool {
        at == 0 && self.image.is_guess()
    }

    /// A write that the host cut off where the guess looks: the rest would be taken unseen.
    fn is_in_guess(&self, request: &Request, count: u64) -> bool {
        let end = request.done + count;
        request.action == Action::Write
            && self.is_guess(request.at)
            && end < request.bytes.min(probe::BYTES as u64)
    }
}

/// What an arrival means to image and memory, whoever still wants it.
pub(super) fn note(image: &Image, request: &Request, arrival: &Arrival) {
    let is_flush = request.action == Action::Flush || request.step == Step::FlushAfter;
    match (request.action, arrival.result) {
        (_, errno) if is_flush => match -errno {
            ..=0 => {}
            libc::EINTR | libc::EAGAIN => image.touched(),
            errno => image.flush_failed(errno),
        },
        // The kernel wrote it, or may have in part.
        (Action::Read, _) => mark(&arrival.memory),
        _ => image.touched(),
    }
}

fn mark(memory: &Memory) {
    let Memory::Guest { ram, ranges } = memory else { return };
    for (gpa, bytes) in ranges {
        if let Some(offset) = ram.main().offset(*gpa) {
            ram.mark(offset, u64::from(*bytes));
        }
    }
}

fn copy_out(ram: &GuestRam, data: &[Buffer], mut to: &mut [u8]) -> Result<(), Fault> {
    for buffer in data {
        let (part, rest) = to.split_at_mut((buffer.bytes as usize).min(to.len()));
        ram.read(buffer.gpa, part)?;
        to = rest;
    }
    Ok(())
}

fn copy_in(ram: &GuestRam, data: &[Buffer], mut from: &[u8]) -> Result<(), Fault> {
    for buffer in data {
        let (part, rest) = from.split_at((buffer.bytes as usize).min(from.len()));
        ram.write(buffer.gpa, part)?;
        from = rest;
    }
    Ok(())
}

/// Zeros, a few at a time.
fn fill(ram: &GuestRam, data: &[Buffer]) -> Result<(), Fault> {
    for buffer in data {
        for at in (0..buffer.bytes).step_by(ZEROS.len()) {
            let zeros = &ZEROS[..(buffer.bytes - at).min(ZEROS.len() as u32) as usize];
            ram.write(buffer.gpa + u64::from(at), zeros)?;
        }
    }
    Ok(())
}

static ZEROS: [u8; 4096] = [0; 4096];

fn is_zero(ram: &GuestRam, data: &[Buffer]) -> Result<bool, Fault> {
    let mut piece = [0; 4096];
    for buffer in data {
        for at in (0..buffer.bytes).step_by(piece.len()) {
            let piece = &mut piece[..(buffer.bytes - at).min(4096) as usize];
            ram.read(buffer.gpa + u64::from(at), piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
