//! `godwit inspect`: the structure and the memory of a migration stream.
