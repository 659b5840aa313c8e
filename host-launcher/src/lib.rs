//! Boots the guest, relays to it and gets paid.
