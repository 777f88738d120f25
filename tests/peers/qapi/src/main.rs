//! A session of the crate `qapi` with a machine that has not started: every question without arguments is
//! decoded into the type that QEMU's schema has for it, and events and errors are told apart.
//!
//! usage: qapi-session MONITOR FOLDER

use std::os::unix::net::UnixStream;
use std::string::String;

use qapi::qmp::*;
use qapi::{ErrorClass, ExecuteError, Qmp, Stream};

type Session<'a> = Qmp<Stream<std::io::BufReader<&'a UnixStream>, &'a UnixStream>>;

/// The command's answer, decoded; what is wrong with it ends the session.
macro_rules! ask {
    ($qmp:expr, $($command:ident),*) => {
        $(
            let answer = $qmp.execute(&$command {});
            if let Err(error) = answer {
                panic!("{}: {error:?}", stringify!($command));
            }
        )*
    };
}

fn main() {
    let mut words = std::env::args().skip(1);
    let (monitor, folder) = (words.next().unwrap(), words.next().unwrap());
    let socket = UnixStream::connect(monitor).unwrap();
    let mut qmp: Session<'_> = Qmp::new(Stream::new(std::io::BufReader::new(&socket), &socket));
    let greeting = qmp.handshake().unwrap();
    assert_eq!(greeting.version.qemu.major, 10);
    ask!(
        qmp,
        query_audiodevs,
        query_block,
        query_block_exports,
        query_block_jobs,
        query_chardev,
        query_chardev_backends,
        query_commands,
        query_cpu_definitions,
        query_cpus_fast,
        query_cryptodev,
        query_current_machine,
        query_dump,
        query_dump_guest_memory_capability,
        query_fdsets,
        query_iothreads,
        query_jobs,
        query_kvm,
        query_memdev,
        query_memory_devices,
        query_memory_size_summary,
        query_mice,
        query_migrate,
        query_migrate_capabilities,
        query_migrate_parameters,
        query_name,
        query_pci,
        query_pr_managers,
        query_qmp_schema,
        query_replay,
        query_status,
        query_target,
        query_tpm,
        query_tpm_models,
        query_tpm_types,
        query_uuid,
        query_vcpu_dirty_limit,
        query_version,
        query_vnc,
        query_vnc_servers,
        query_yank
    );
    let list = qmp.execute(&qom_list { path: "/machine".into() }).unwrap();
    assert!(list.iter().any(|property| property.name == "peripheral"));
    let stats = query_stats_schemas { provider: None };
    qmp.execute(&stats).unwrap();
    qmp.execute(&query_command_line_options { option: None }).unwrap();
    qmp.execute(&query_rx_filter { name: None }).unwrap();
    qmp.execute(&query_dirty_rate { calc_time_unit: None }).unwrap();

    qmp.execute(&cont {}).unwrap();
    assert!(qmp.execute(&query_status {}).unwrap().running);
    qmp.execute(&stop {}).unwrap();
    assert_eq!(events(&mut qmp), ["RESUME", "STOP"]);
    let events_on =
        MigrationCapabilityStatus { capability: MigrationCapability::events, state: true };
    qmp.execute(&migrate_set_capabilities { capabilities: vec![events_on] }).unwrap();

    let dump = dump_guest_memory {
        paging: false,
        protocol: format!("file:{folder}/qapi-dump"),
        begin: None,
        detach: None,
        format: None,
        length: None,
    };
    qmp.execute(&dump).unwrap();
    assert!(events(&mut qmp).contains(&"DUMP_COMPLETED".to_owned()));

    let refused = |answer: Result<_, ExecuteError>| match answer {
        Err(ExecuteError::Qapi(error)) => error.class,
        Err(error) => panic!("{error:?}"),
        Ok(()) => panic!("accepted"),
    };
    let answer = qmp.execute(&closefd { fdname: "none".into() }).map(drop);
    assert_eq!(refused(answer), ErrorClass::GenericError);
    let answer = qmp.execute(&qom_list { path: "/nothing".into() }).map(drop);
    assert_eq!(refused(answer), ErrorClass::DeviceNotFound);
    let answer = qmp.execute(&query_balloon {}).map(drop);
    assert_eq!(refused(answer), ErrorClass::DeviceNotActive);

    // Every event on the way is decoded, too: one that QEMU's schema does not have is an error.
    let save = migrate {
        uri: Some(format!("file:{folder}/qapi-saved")),
        channels: None,
        detach: None,
        resume: None,
    };
    qmp.execute(&save).unwrap();
    loop {
        match qmp.execute(&query_migrate {}).unwrap().status {
            Some(MigrationStatus::completed) => break,
            Some(MigrationStatus::failed) => panic!("the migration failed"),
            _ => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    assert!(events(&mut qmp).contains(&"MIGRATION".to_owned()));
    qmp.execute(&quit {}).unwrap();
    println!("done");
}

/// The names of the events since the last call.
fn events(qmp: &mut Session<'_>) -> Vec<String> {
    let name = |event: Event| {
        let text = serde_json::to_value(&event).unwrap();
        text["event"].as_str().unwrap().to_owned()
    };
    qmp.events().map(name).collect()
}
