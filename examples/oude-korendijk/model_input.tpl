ptf ~
rate_m3_per_d            788.0
transmissivity_m2_per_d  ~       transm          ~
storage                  ~       storage         ~
