"""What commands share: arguments, ranks as processes of this machine, compilers."""
