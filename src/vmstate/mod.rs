//! QEMU's section layouts: what each device puts into the migration stream.
