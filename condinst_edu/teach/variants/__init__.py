"""Wrong and ablated variants of the library's functions; `condinst_edu.teach.deviations` says what each is."""
