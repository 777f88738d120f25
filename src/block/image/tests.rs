use super::*;
use crate::block::qcow2;
use std::time::Duration;

fn image(change: impl FnOnce(&mut config::Image)) -> (Image, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 16).unwrap();
    let mut wanted = config::Image {
        name: "d".into(),
        path: file.path().into(),
        locking: true,
        ..config::Image::default()
    };
    change(&mut wanted);
    (Image::open(0, &wanted).unwrap(), file)
}

#[test]
fn an_image_is_resized_only_where_the_guest_is() {
    let (image, file) = image(|_| {});
    let length = || file.as_file().metadata().unwrap().len();
    image.resize(1 << 17).unwrap();
    image.claim("disk", true, false).unwrap();
    // The guest has not come yet.
    assert!(matches!(image.resize(512), Err(Error::Inactive(_))));
    image.take(true).unwrap();
    image.resize(1 << 18).unwrap();
    let other = Image::open(1, &image.config).unwrap();
    assert!(matches!(other.resize(512), Err(Error::Locked { .. })));
    image.let_go().unwrap();
    assert!(matches!(image.resize(512), Err(Error::Inactive(_))));
    assert_eq!(length(), 1 << 18);
    other.resize(1 << 16).unwrap();
    // It gave back what it took.
    image.take(true).unwrap();
}

fn with_tables(change: impl FnOnce(&mut config::Image)) -> (Image, tempfile::NamedTempFile) {
    let below = std::path::absolute("/dev/zero").unwrap();
    image(|image| {
        image.format = ImageFormat::Qcow2;
        image.backing = config::Backing::Nothing;
        let file = File::options().read(true).write(true).open(&image.path).unwrap();
        file.set_len(0).unwrap();
        let below = below.to_str().unwrap().to_owned();
        qcow2::create(&Arc::new(file), 1 << 20, (below, "raw".into())).unwrap();
        change(image);
    })
}

#[test]
fn an_image_whose_tables_cannot_be_written_stays_as_it_was() {
    let (image, _file) = with_tables(|_| {});
    image.claim("disk", true, false).unwrap();
    image.take(false).unwrap();
    image.with_chain(|chain| chain.write(0, &[7; 512])).unwrap();
    image.touched();
    *image.top().file_watch.fails.lock().unwrap() = Some(0);
    assert_eq!(image.flush().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    let refused = image.let_go().unwrap_err().to_string();
    assert!(refused.contains("No space left"), "{refused}");
    // Nobody else gets it.
    let other = Image::open(1, &image.config).unwrap();
    other.claim("disk", true, false).unwrap();
    assert!(matches!(other.take(true), Err(Error::Locked { .. })));
    // It is taken again where the guest goes on, with all that it had.
    image.take(true).unwrap();
    *image.top().file_watch.fails.lock().unwrap() = None;
    image.let_go().unwrap();
    other.take(true).unwrap();
    let mut found = [0; 512];
    other.with_chain(|chain| chain.read(0, &mut found)).unwrap();
    assert_eq!(found, [7; 512]);
}

#[test]
fn tables_are_written_at_a_flush_where_the_disk_is_not_waited_for() {
    let (image, file) = with_tables(|image| image.cache.no_flush = true);
    image.claim("disk", true, false).unwrap();
    image.take(false).unwrap();
    image.with_chain(|chain| chain.write(0, &[7; 512])).unwrap();
    image.touched();
    image.flush().unwrap();
    // As it is after the end of this process.
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(file.path(), copy.path()).unwrap();
    qcow2::set_dirty(copy.as_file(), 1, false).unwrap();
    let wanted = config::Image { path: copy.path().into(), ..image.config.clone() };
    let after = Image::open(1, &wanted).unwrap();
    after.claim("disk", false, false).unwrap();
    after.take(false).unwrap();
    let mut found = [0; 512];
    after.with_chain(|chain| chain.read(0, &mut found)).unwrap();
    assert_eq!(found, [7; 512]);
}

#[test]
fn who_uses_an_image_is_told_while_work_is_done_on_it() {
    let (image, _file) = image(|_| {});
    image.claim("disk", true, false).unwrap();
    assert!(!image.claim("other", true, false).unwrap());
    // As a resize, or an overlay, has them.
    let work = (lock(&image.claim), lock(&image.changing), lock(&image.chain));
    let image = &image;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let asks = scope.spawn(move || tell.send((image.user(), image.layers().len())));
        let said = told.recv_timeout(Duration::from_secs(60));
        // Or the thread would never end.
        drop(work);
        assert_eq!(said.unwrap(), (Some("disk".into()), 1));
        asks.join().unwrap().unwrap();
    });
}

#[test]
fn a_flush_that_failed_is_never_forgotten() {
    for (direct, lost) in [(false, true), (true, false)] {
        let (image, _file) = image(|image| image.cache.direct = direct);
        image.flush().unwrap();
        image.flush_failed(libc::EIO);
        assert!(image.is_unflushed());
        for _ in 0..2 {
            assert_eq!(image.flush().is_err(), lost, "{direct}");
        }
    }
    let (image, _file) = image(|image| image.cache.no_flush = true);
    image.flush_failed(libc::EIO);
    image.flush().unwrap();
}
