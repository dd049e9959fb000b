"""A check-up of an installation: does everything that training rests on work here?"""
