//! A request on its way: sent off, arrived in part, done, failed.

use super::super::queue::{Buffer, Fault, Queue};
use super::request::{Action, Request, Status, Step, part};
use super::{Disk, answer};
use crate::block::probe;
use crate::block::ring::{Aligned, Arrival, Memory, Work};
use crate::config::{DetectZeroes, ImageFormat, OnError};
use crate::devices::{DiskError, DiskErrorAction};
use crate::memory::GuestRam;
use std::io;

/// Zeros that are written out at a time.
const ZEROS: u64 = 1 << 20;

impl Disk {
    /// Begins a request that makes sense.
    pub(super) fn start(
        &mut self,
        ram: &GuestRam,
        queue: &mut Queue,
        mut request: Request,
    ) -> Result<(), Fault> {
        let cache = self.image.config.cache;
        match request.action {
            Action::Flush if cache.no_flush => return self.finish(ram, queue, request),
            Action::Discard if !self.image.config.discard => {
                return self.finish(ram, queue, request);
            }
            Action::Read | Action::Write | Action::Discard | Action::Zeroes { .. }
                if request.bytes == 0 =>
            {
                return self.finish(ram, queue, request);
            }
            Action::Write => {
                if !self.image.writable {
                    return self.fail(ram, queue, request, libc::EPERM);
                }
                if self.would_be_another_format(ram, &request)? {
                    return self.fail(ram, queue, request, libc::EPERM);
                }
                let detect = self.image.config.detect_zeroes;
                if detect != DetectZeroes::Off && is_zero(ram, &request.data)? {
                    request.action = Action::Zeroes { unmap: detect == DetectZeroes::Unmap };
                }
            }
            Action::Discard | Action::Zeroes { .. } if !self.image.writable => {
                return self.fail(ram, queue, request, libc::EPERM);
            }
            _ => {}
        }
        self.send(ram, queue, request)
    }

    /// Sends off what is not done yet.
    fn send(&mut self, ram: &GuestRam, queue: &mut Queue, request: Request) -> Result<(), Fault> {
        let (at, left) = (request.at + request.done, request.bytes - request.done);
        let (work, memory) = match (request.step, request.action) {
            (Step::FlushAfter, _) | (_, Action::Flush) => {
                self.image.begin_flush();
                (Work::Flush, Memory::None)
            }
            (Step::ZerosWritten, _) => {
                (Work::Write { at }, Memory::Own(Aligned::new(left.min(ZEROS) as usize)))
            }
            (Step::Direct, Action::Read) => {
                let data = part(&request.data, request.done, left);
                for buffer in &data {
                    // It need not be held until the kernel has written: an image of memory is fixed
                    // while the guest, and with it the disk, stands still.
                    drop(ram.ask_to_write(buffer.gpa, buffer.bytes.into()));
                }
                (Work::Read { at }, self.memory(ram, &data, left))
            }
            (Step::Direct, Action::Write) => {
                let data = part(&request.data, request.done, left);
                let mut memory = self.memory(ram, &data, left);
                if let Memory::Own(own) = &mut memory {
                    copy_out(ram, &data, own.get_mut())?;
                }
                (Work::Write { at }, memory)
            }
            (Step::Direct, Action::Discard) => {
                (Work::Allocate { at, bytes: left, flags: PUNCH }, Memory::None)
            }
            (Step::Direct, Action::Zeroes { unmap }) => {
                let flags = if unmap && self.image.config.discard { PUNCH } else { ZERO };
                (Work::Allocate { at, bytes: left, flags }, Memory::None)
            }
        };
        let number = self.next_number;
        match self.ring.push(number, self.image.file(), work, memory) {
            Ok(()) => {
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

    /// Guest memory as it is, or memory that `O_DIRECT` takes.
    fn memory(&self, ram: &GuestRam, data: &[Buffer], bytes: u64) -> Memory {
        let unit = u64::from(self.alignment);
        let fits = |buffer: &Buffer| {
            buffer.gpa.is_multiple_of(unit) && u64::from(buffer.bytes).is_multiple_of(unit)
        };
        match data.iter().all(fits) {
            true => Memory::Guest {
                ram: ram.clone(),
                ranges: data.iter().map(|buffer| (buffer.gpa, buffer.bytes)).collect(),
            },
            false => Memory::Own(Aligned::new(bytes as usize)),
        }
    }

    /// Takes what has arrived.
    pub(super) fn arrivals(&mut self, ram: &GuestRam, queues: &mut [Queue]) -> Result<(), Fault> {
        while let Some(arrival) = self.ring.take() {
            mark(&arrival.memory);
            let Some(request) = self.under_way.remove(&arrival.number) else { continue };
            let queue = &mut queues[usize::from(request.queue)];
            self.arrived(ram, queue, request, &arrival)?;
            // Requests of several steps go on.
            self.ring.submit();
        }
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
                if count == 0 {
                    // Behind the end of the file, in its last sector.
                    copy_in(ram, &data, &vec![0; left as usize])?;
                    request.done = request.bytes;
                }
                request.done += count;
                self.go_on(ram, queue, request)
            }
            (Step::ZerosWritten, ..) | (Step::Direct, Action::Write, _) if count == 0 => {
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
            self.image.written(request.at + request.bytes);
            if !self.write_cache && !self.image.config.cache.no_flush {
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
        if matches!(request.action, Action::Flush) || request.step == Step::FlushAfter {
            self.image.flush_failed();
        }
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
            node: config.node.clone(),
            qdev: self.path.clone(),
            is_read,
            action,
            no_space,
            reason: reason(errno),
        };
        if action == DiskErrorAction::Stop {
            self.stopped.push((request.queue, request.chain));
            self.image.is_in_trouble(no_space);
            (self.tell)(told);
            return Ok(());
        }
        (self.tell)(told);
        let status = if action == DiskErrorAction::Ignore { Status::Ok } else { Status::Error };
        answer(ram, queue, &request.chain, status)
    }

    /// Of an image whose format was guessed: a write that would make the next guess another one.
    fn would_be_another_format(&self, ram: &GuestRam, request: &Request) -> Result<bool, Fault> {
        if self.image.config.format != ImageFormat::Probed || request.at != 0 {
            return Ok(false);
        }
        let mut start = [0; probe::BYTES];
        let data = part(&request.data, 0, probe::BYTES as u64);
        copy_out(ram, &data, &mut start)?;
        Ok(probe::format(&start).is_some())
    }
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// The words of C's library, without the number.
fn reason(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Guest memory that the kernel wrote, or may have written in part.
pub(super) fn mark(memory: &Memory) {
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
