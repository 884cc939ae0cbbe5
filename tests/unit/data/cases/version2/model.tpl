ptf ~
~k1             ~
~k2             ~
~s              ~
~h0             ~
~t              ~
