//! XBZRLE page deltas.
